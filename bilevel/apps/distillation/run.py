"""Distil a data set, and judge a small one by training on it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from bilevel import methods
from bilevel.apps.distillation.problem import Distillation, Learned, data
from bilevel.apps.distillation.students import Student, convnet, head, with_one
from bilevel.driver import Result, train
from bilevel.methods import AbstractMethod
from bilevel.selection import solve
from bilevel.updates import SGD, FromOptax


class Distilled(NamedTuple):
    """A learned data set, and the run."""

    learned: Learned
    result: Result


def method(x_step: float = 5e-3) -> AbstractMethod:
    """Adam on images and targets; the students take their own step."""
    return methods.TTSA(FromOptax(optax.adam, x_step))


def distil(
    images: Float[Array, "n ..."],
    targets: Float[Array, "n k"],
    start: Learned,
    *,
    student: Student | None = None,
    how: AbstractMethod | None = None,
    steps: int = 600,
    students: int = 10,
    batch: int = 256,
    ridge: float = 1e-5,
    student_step: float = 0.1,
    decay: float = 1e-3,
    reset: int = 50,
    seed: int = 0,
    **options: Any,
) -> Distilled:
    """Learn images and targets from which the targets of all images are predicted.

    Args:
        targets: one-hot labels for plain distillation; for KRR-ST a teacher's representation,
            and no label is used.
        start: where images and targets begin, such as a few real rows; their number stays.
        student: the family of networks, `convnet()` when absent.
        ridge: of the closed-form head, times the trace of its matrix.
        student_step, decay: of the gradient steps of the students.
        reset: steps after which a student is drawn anew; the paper takes 1000 of 160 000 steps.
        options: handed to `bl.solve`.

    Raises:
        ValueError: rows or shapes do not agree.
    """
    _check(images, targets, start)
    levels = Distillation(student or convnet(), ridge, student_step, decay, reset)
    own, key = jax.random.split(jax.random.key(seed))
    result = solve(
        levels.problem(),
        method() if how is None else how,
        start,
        levels.pool(own, start, students),
        data=data(images, targets, students, min(batch, len(images))),
        steps=steps,
        key=key,
        **{"certify": False, **options},
    )
    return Distilled(Learned(*result.x), result)


def accuracy(
    learned: Learned,
    images: Array,
    labels: Array,
    *,
    student: Student | None = None,
    networks: int = 5,
    ridge: float = 1e-5,
    seed: int = 1,
) -> np.ndarray:
    """Test accuracies of networks that no distillation has seen, of random weights.

    Each has the closed-form head of the small data set, whose targets have a column a class.
    """
    student = student or convnet()

    @eqx.filter_jit
    def one(key):
        weights = student.init(key)
        own = head(student.features(weights, learned.images), learned.targets, ridge)
        return jnp.mean(jnp.argmax(with_one(student.features(weights, images)) @ own, 1) == labels)

    keys = jax.random.split(jax.random.key(seed), networks)
    return np.array([float(one(key)) for key in keys])


def pretrain(
    learned: Learned,
    *,
    student: Student | None = None,
    steps: int = 1000,
    step: float = 0.1,
    decay: float = 1e-3,
    seed: int = 1,
) -> PyTree:
    """A fresh student trained on the small data set only: its weights, to be tuned or probed."""
    levels = Distillation(student or convnet(), 1e-6, step, decay, steps + 1)
    pool = levels.pool(jax.random.key(seed), learned, 1)
    pool = pool._replace(ages=jnp.zeros_like(pool.ages))
    draws = data(learned.images, learned.targets, 1, 1)
    pool = train(levels.problem(), learned, pool, data=draws, update=SGD(step), steps=steps)
    return jax.tree.map(lambda leaf: leaf[0], pool.weights)


def _check(images: Array, targets: Array, start: Learned) -> None:
    shapes = (np.shape(images), np.shape(targets), *map(np.shape, start))
    real, wanted, small, few = shapes
    if len(wanted) != 2 or len(few) != 2 or real[0] != wanted[0] or small[0] != few[0]:
        raise ValueError(
            f"images {real} and targets {wanted}, and those of start, {small} and {few}: a row of "
            "targets is needed for each image."
        )
    if real[1:] != small[1:] or wanted[1:] != few[1:]:
        raise ValueError(
            f"start holds images {small} with targets {few}; those of the data are {real} and "
            f"{wanted}, and all but the number of rows must agree."
        )
