"""Episodes one after another, with a memory of a fixed size."""

import enum
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, PyTree

from bilevel import trees
from bilevel.apps.wireless.problem import Samples, problem, shortfall, start
from bilevel.data import Data
from bilevel.driver import run
from bilevel.methods import GDA
from bilevel.problem import Batch
from bilevel.updates import FromOptax


class Memory(enum.Enum):
    """What is kept of the samples seen."""

    LARGEST = "largest weights"  # the min-max problem
    RESERVOIR = "reservoir"  # a uniform sample of all that was seen, equal weights
    NOTHING = "nothing"  # transfer: train on with the new samples only
    ALL = "all"  # joint training on every sample of all episodes, equal weights


def learn(
    episodes: Sequence[Samples],
    memory: Memory = Memory.LARGEST,
    *,
    size: int = 200,
    steps: int = 1500,
    batch_size: int = 100,
    step_size: float = 1e-3,
    weight_step: float = 1e-4,
    seed: int = 0,
) -> list[PyTree]:
    """Train a network through the episodes; the network after each of them.

    Args:
        episodes: of equal length.
        size: of the memory.
        steps: of GDA in each episode: RMSprop on a batch for the network, a projected step on all
            samples for the weights. Joint training makes those of all episodes together.
        step_size, weight_step: of x and of y.

    Raises:
        ValueError: episodes of unlike lengths, or a memory larger than an episode.
    """
    lengths = {len(episode.best) for episode in episodes}
    if len(lengths) != 1 or not 0 < size <= min(lengths):
        raise ValueError(
            f"episodes have {sorted(lengths)} samples and the memory {size}; episodes of one "
            "length and a memory that is not larger are needed."
        )
    key, first = jax.random.split(jax.random.key(seed))
    x = start(episodes[0].gains.shape[-1], key=first)
    if memory is Memory.ALL:
        episodes, steps = (
            [trees.map(lambda *a: jnp.concatenate(a), *episodes)],
            steps * len(episodes),
        )
    method = GDA(
        x_update=FromOptax(optax.rmsprop, step_size),
        y_update=weight_step if memory is Memory.LARGEST else 0.0,
    )
    draw, found, kept, seen = np.random.default_rng(seed), [], None, 0
    for episode in episodes:
        key, now = jax.random.split(key)
        n = len(episode.best)
        if kept is None or memory is Memory.NOTHING:  # so that every pool has one size
            kept = _rows(episode, draw.choice(n, size, replace=False))
        pool = episode if memory is Memory.ALL else trees.map(_join, kept, episode)
        numbers = jnp.arange(len(pool.best))
        data = Data((numbers, pool), (numbers, pool), batch_size=Batch(batch_size, None))
        y0 = jnp.full(len(numbers), 1 / len(numbers))
        state = method.init(problem(), x, y0)
        state, _ = run(problem(), method, state, data=data, key=now, steps=steps)
        x = state.x
        found.append(x)
        if memory is Memory.RESERVOIR:
            fresh = draw.binomial(size, n / (seen + n))
            old = draw.choice(size, size - fresh, replace=False)
            new = size + draw.choice(n, fresh, replace=False)
            chosen = np.concatenate([old, new])
        else:
            chosen = np.argsort(-np.asarray(state.y), kind="stable")[:size]
        kept, seen = _rows(pool, chosen), seen + n
    return found


def served(x: PyTree, test: Samples) -> float:
    """The mean of the rates on test channels, relative to the mean of WMMSE's."""
    return float(((1 - shortfall(x, test)) * test.best).sum() / test.best.sum())


def _rows(samples: Samples, rows: np.ndarray) -> Samples:
    return trees.map(lambda a: a[rows], samples)


def _join(first: Float, second: Float):
    return jnp.concatenate([first, second])
