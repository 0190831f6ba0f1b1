"""Tasks with few samples: classes drawn from many, and a family with a known answer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.typing import RandomKey


class Rows(NamedTuple):
    """Samples of m tasks."""

    inputs: Float[Array, "m n ..."]
    targets: Array  # (m, n): numbers, or classes from 0 to ways − 1 of each task


class Tasks(NamedTuple):
    """m tasks: heads are fitted on the support, features on the query."""

    support: Rows  # lower level
    query: Rows  # upper level

    def __len__(self) -> int:
        return len(self.support.targets)


def episodes(
    pictures: Float[np.ndarray, "classes samples ..."],
    m: int,
    *,
    ways: int = 5,
    shots: int = 5,
    queries: int = 5,
    seed: int = 0,
) -> Tasks:
    """m tasks: each tells `ways` of the classes apart, from `shots` samples of each.

    Raises:
        ValueError: there are fewer classes than ways, or fewer samples than shots and queries.
    """
    classes, samples = pictures.shape[:2]
    if not 2 <= ways <= classes or min(m, shots, queries) < 1 or shots + queries > samples:
        raise ValueError(
            f"{m} tasks of {ways} ways, {shots} shots and {queries} queries were asked of {classes}"
            f" classes with {samples} samples each; at most that many ways (2 or more), and "
            "shots + queries at most the samples, are needed."
        )
    draw = np.random.default_rng(seed)
    support, query = [], []
    for _ in range(m):
        chosen = draw.choice(classes, ways, replace=False)
        order = [draw.permutation(samples) for _ in chosen]
        support.append([pictures[c, o[:shots]] for c, o in zip(chosen, order, strict=True)])
        query.append(
            [pictures[c, o[shots : shots + queries]] for c, o in zip(chosen, order, strict=True)]
        )

    def rows(found: list, each: int) -> Rows:
        inputs = np.array(found).reshape(m, ways * each, *pictures.shape[2:])
        labels = np.tile(np.repeat(np.arange(ways), each), (m, 1))
        return Rows(jnp.asarray(inputs, float), jnp.asarray(labels))

    return Tasks(rows(support, shots), rows(query, queries))


def subspace(
    key: RandomKey, m: int, *, basis: Float[Array, "p k"], n: int = 10, noise: float = 0.1
) -> Tasks:
    """Regression tasks whose targets depend on `basisᵀ u` alone: the features to be found.

    Task b has targets `a_b · (basisᵀ u) + noise`, with n support and n query samples u. Where n is
    below p, no task can be learned without what the others know.
    """
    at, heads, error = jax.random.split(key, 3)
    inputs = jax.random.normal(at, (m, 2 * n, basis.shape[0]))
    a = jax.random.normal(heads, (m, basis.shape[1]))
    targets = jnp.einsum("mnp,pk,mk->mn", inputs, basis, a)
    targets = targets + noise * jax.random.normal(error, targets.shape)
    return Tasks(Rows(inputs[:, :n], targets[:, :n]), Rows(inputs[:, n:], targets[:, n:]))
