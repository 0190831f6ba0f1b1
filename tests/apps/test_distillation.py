"""Distillation: its closed form and hypergradient, exact recovery, fifty digits."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps import distillation
from bilevel.apps.distillation import Distillation, Learned
from bilevel.apps.distillation.problem import Draw
from bilevel.problem import Batch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import distillation as example


def small(rows, width=6, targets=2, seed=0):
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.normal(size=(rows, width))), jnp.asarray(
        draw.normal(size=(rows, targets))
    )


def test_head_is_the_ridge_regression():
    F, Y = map(np.asarray, small(9))
    F1 = np.c_[F, np.ones(9)]
    lam = 0.01 * np.trace(F1 @ F1.T)
    expected = np.linalg.solve(F1.T @ F1 + lam * np.eye(7), F1.T @ Y)
    np.testing.assert_allclose(distillation.head(F, Y, 0.01), expected, rtol=1e-9)


def test_hypergradient_is_the_slope_of_the_upper_loss():
    levels = Distillation(distillation.linear(), 1e-3, 0.1, 0.0, 100)
    x, (images, targets) = Learned(*small(4)), small(20, seed=1)
    y = levels.pool(jax.random.key(0), x, 1)
    draw = Draw(jnp.zeros((), int), jnp.zeros((), int), images, targets)
    got = levels.hypergradient(x, y, Batch(draw)).targets
    move = np.zeros((4, 2))
    move[1, 1] = 1e-6
    up, down = (levels.upper(x._replace(targets=x.targets + s * move), y, draw) for s in (1, -1))
    np.testing.assert_allclose(got[1, 1], (up - down) / 2e-6, rtol=1e-6)


def test_a_student_takes_its_step_and_is_drawn_anew_when_it_is_old():
    levels = Distillation(distillation.linear(), 1e-3, 0.1, 0.0, 3)
    x = Learned(*small(4))
    y = levels.pool(jax.random.key(0), x, 2)._replace(ages=jnp.zeros(2))
    draw = Draw(jnp.ones((), int), jnp.zeros((), int))
    F, step = np.c_[np.asarray(x.images), np.ones(4)], jax.jit(levels.train_one)
    y = step(x, y, draw)
    np.testing.assert_allclose(y.heads[1], 0.1 * F.T @ x.targets / 4, rtol=1e-12)
    assert not y.heads[0].any()
    y = step(x, step(x, y, draw), draw)
    assert float(y.ages[1]) == 0
    assert not y.heads[1].any()


def test_wrong_shapes_are_refused():
    images, targets = small(20)
    with pytest.raises(ValueError, match="a row of targets is needed for each image"):
        distillation.distil(images, targets[:3], Learned(images[:2], targets[:2]))
    with pytest.raises(ValueError, match="all but the number of rows must agree"):
        distillation.distil(images, targets, Learned(images[:2, :3], targets[:2]))


@pytest.mark.slow
def test_enough_images_recover_a_linear_teacher():
    """With as many images as features, the optimum is no loss at all, and is reached."""
    images, _ = small(100)
    teacher = np.random.default_rng(5).normal(size=(6, 2))
    targets = images @ teacher
    found = distillation.distil(
        images, targets, Learned(*small(8, seed=7)), student=distillation.linear(), ridge=1e-12,
        how=distillation.method(0.02), steps=4000, batch=100, students=1,
    )  # fmt: skip
    W = distillation.head(found.learned.images, found.learned.targets, 1e-12)
    errors = distillation.with_one(images) @ W - targets
    assert float(jnp.mean(errors**2)) < 1e-4 * float(jnp.mean(targets**2))


def single_precision():
    home = "jax" if hasattr(jax, "enable_x64") else "jax.experimental"  # it moved
    return importlib.import_module(home).enable_x64(False)


@pytest.mark.slow
def test_fifty_learned_digits_beat_random_ones_and_k_means():
    with single_precision():  # as the example runs, whose figures the docs show
        values = {name: one[1].mean() for name, one in example.compare().items()}
    assert values["learned"] > values["k-means"] + 0.01
    assert values["learned"] > values["random"] + 0.05


@pytest.mark.slow
def test_students_trained_on_images_learned_without_labels_have_better_features():
    """KRR-ST: targets of a teacher (16 principal components); a head on the fifty images."""
    (images, _), (unseen, _) = example.digits(0)
    flat = images.reshape(len(images), -1)
    _, _, axes = jnp.linalg.svd(flat - flat.mean(0)[None], full_matrices=False)
    targets = (flat - flat.mean(0)[None]) @ axes[:16].T
    rows = np.random.default_rng(0).permutation(len(images))[:50]
    random = Learned(images[rows], targets[rows])
    found = distillation.distil(images, targets, random).learned

    def fit(one):
        """Loss of the teacher's representation on unseen digits, over fresh students."""
        student = distillation.convnet()
        real = (unseen.reshape(len(unseen), -1) - flat.mean(0)[None]) @ axes[:16].T
        weights = [distillation.pretrain(one, steps=200, seed=s) for s in range(3)]
        losses = []
        for w in weights:
            head = distillation.head(student.features(w, one.images), one.targets, 1e-5)
            shown = distillation.with_one(student.features(w, unseen)) @ head
            losses.append(float(jnp.mean((shown - real) ** 2)))
        return np.mean(losses)

    assert fit(found) < 0.8 * fit(random)
