"""Cleaning over several seeds in one compiled run, and its gain with a standard error."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.apps.cleaning.digits import Task
from bilevel.apps.cleaning.judge import accuracy, detection, retrain, train
from bilevel.apps.cleaning.losses import linear, self_paced, self_paced_data, start
from bilevel.apps.cleaning.models import Model
from bilevel.apps.cleaning.settings import begin, settings
from bilevel.driver import run


class Mean(NamedTuple):
    """A mean over seeds and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


class Outcomes(NamedTuple):
    """What cleaning achieved on each seed, and the same classifier without it."""

    accuracy: Float[np.ndarray, " seeds"]  # trained again on the samples kept and the clean ones
    f1: Float[np.ndarray, " seeds"]
    all_data: Float[np.ndarray, " seeds"]
    clean_only: Float[np.ndarray, " seeds"]

    @property
    def clean_is_better(self) -> bool:
        """Which of the two baselines is better, in the mean."""
        return bool(self.clean_only.mean() > self.all_data.mean())

    @property
    def gain(self) -> Mean:
        """Over the better of the two baselines, seed by seed."""
        return mean(self.accuracy - (self.clean_only if self.clean_is_better else self.all_data))

    @property
    def pays(self) -> bool:
        """Whether the gain is more than three of its standard errors: six seeds are few."""
        return self.gain.value > 3 * self.gain.error


def mean(values: Float[np.ndarray, " seeds"]) -> Mean:
    return Mean(float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))))


def over_seeds(tasks: Sequence[Task], *, steps: int = 1000) -> Outcomes:
    """Clean tasks of one size with SOBA and a linear classifier, all of them in one `vmap`.

    Args:
        tasks: at least two.
    """
    parts = zip(*(task[:3] for task in tasks), strict=True)
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *part) for part in parts]
    x, accuracies = _cleaned(stacked, start(tasks[0])[1], steps)
    pairs = zip(tasks, np.asarray(x), strict=True)
    f1 = np.array([detection(row, task.wrong).f1 for task, row in pairs])
    again, every, clean = np.asarray(accuracies, float).T
    return Outcomes(again, f1, every, clean)


@functools.partial(jax.jit, static_argnames="steps")
def _cleaned(stacked, y0, steps: int) -> tuple[Float[Array, "seeds n"], Float[Array, "seeds 3"]]:
    losses, method, key = self_paced(), settings()["SOBA"], jax.random.key(0)

    def one(doubtful, validation, test):
        n = len(doubtful.labels)
        task = Task(doubtful, validation, test, np.zeros(n, bool))
        data = self_paced_data(task)
        x0, y = begin(losses, Model(linear, y0), data, n, key)
        x = run(losses, method, method.init(losses, x0, y), data=data, steps=steps)[0].x
        of = retrain(task, x, y0), train(doubtful, y0), train(validation, y0)
        return x, jnp.array([accuracy(y, test) for y in of])

    return jax.vmap(one)(*stacked)
