"""Worst-case forget sets: what unlearning cannot forget is chosen, by the steps that are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from bilevel.apps import forget_set
from bilevel.apps.forget_set import digits

A = np.random.default_rng(0).normal(size=(6, 3))
B = np.array([1.0, -1, 1, -1, 1, -1])


def losses(A, b, y):
    return (A @ y - b) ** 2 / 2


def by_hand(w, y0, steps, step_size):
    """Unlearning in NumPy: signs of the gradient of (1 − w) loss of b + w loss of −b."""
    y = y0.copy()
    for k in range(steps):
        grad = A.T @ ((1 - w) * (A @ y - B) + w * (A @ y + B))
        y -= step_size / (1 + k / 3) * np.sign(grad)
    return y


def test_each_step_unlearns_anew_and_moves_the_weights_along_the_losses():
    keep, forget = (Partial(losses, jnp.asarray(A), jnp.asarray(b)) for b in (B, -B))
    y0, w = np.array([0.3, -0.2, 0.1]), None
    found = forget_set.select(
        keep, forget, jnp.asarray(y0), 6, 2, steps=3, by=forget_set.method(0.1, 4), step_size=0.05
    )
    first = jax.random.choice(jax.random.key(0), 6, (2,), replace=False)
    w = np.zeros(6)
    w[np.asarray(first)] = 1
    for _ in range(3):
        y = by_hand(w, y0, 4, 0.05)
        z = w - 0.1 * losses(A, B, y)
        ends = np.linspace(z.min() - 1, z.max(), 200_001)  # the shift, by search
        sums = np.clip(z[:, None] - ends, 0, 1).sum(0)
        w = np.clip(z - ends[np.argmin(np.abs(sums - 2))], 0, 1)
    np.testing.assert_allclose(found.unlearned, y, atol=1e-4)
    np.testing.assert_allclose(found.weights, w, atol=1e-4)
    assert set(found.rows.tolist()) == set(np.argsort(-w)[:2].tolist())


@pytest.mark.parametrize("m", [0, 6])
def test_as_many_samples_as_there_are_or_none_are_refused(m):
    keep = Partial(losses, jnp.asarray(A), jnp.asarray(B))
    with pytest.raises(ValueError, match=f"m is {m}; a number from 1 to 5 is needed"):
        forget_set.select(keep, keep, jnp.zeros(3), 6, m)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_samples_with_a_copy_are_chosen(seed):
    pytest.importorskip("sklearn")
    samples = digits.digits(seed=seed)
    model = digits.train(samples)
    found = forget_set.select(
        samples.losses(), samples.forgetting(), model, 1000, 200,
        rest=samples.rest(), step_size=3e-2, seed=seed,
    )  # fmt: skip
    chosen = samples.copied[np.asarray(found.rows)]
    assert chosen.mean() > 0.8
    easiest = np.argsort(np.asarray(samples.losses()(model)))[:200]
    assert samples.copied[easiest].mean() < 0.6  # which the losses before unlearning do not tell
