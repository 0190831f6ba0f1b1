"""The tables of the contract: every method, with steps scaled to a problem; every problem.

A new method joins with one row in METHODS.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel import linear, methods, problems
from bilevel.problems import Case

PROBLEMS = {
    name: problems.ALL[name]
    for name in (
        "quad",
        "boxed",
        "nested",
        "blocks",
        "curv",
        "scalar",
        "shifted",
        "minmax",
        "ridge",
    )
}


class Scales(NamedTuple):
    """Step sizes that suit a problem: fractions of one over its smoothness."""

    upper: float  # 1 / L of the hyper-objective at x0
    lower: float  # 1 / L of the lower loss
    terms: int  # of a series that leaves an error of 1e-6


@functools.cache
def scales(problem: str) -> Scales:
    case = PROBLEMS[problem]()
    flat, unravel = ravel_pytree(case.x0)
    gradient = jax.jit(lambda x: ravel_pytree(case.gradient(unravel(x)))[0])
    columns = [gradient(flat + e) - gradient(flat - e) for e in 1e-4 * np.eye(flat.size)]
    smoothness = np.linalg.norm(np.stack(columns), 2) / 2e-4
    shrink = 1 - 0.9 * case.lower_mu / case.lower_L  # of the series' error, per term
    terms = int(np.ceil(np.log(1e-7) / np.log(shrink)))
    return Scales(1 / max(smoothness, 0.1), 0.9 / case.lower_L, terms)


class Row(NamedTuple):
    """A method of the contract.

    build: settings for a problem, with the x step multiplied by `speed`.
    bias: how far its direction is from the hypergradient when y is at its target, relatively.
    """

    build: Callable[[Scales, float], methods.AbstractMethod]
    bias: float = 1e-5


METHODS: dict[str, Row] = {
    "SOBA": Row(lambda s, speed: methods.SOBA(0.1 * speed * s.upper, s.lower, s.lower)),
    "TTSA": Row(
        lambda s, speed: methods.TTSA(
            0.2 * speed * s.upper, s.lower, linear.Neumann(s.terms, s.lower)
        )
    ),
    "StocBiO": Row(
        lambda s, speed: methods.StocBiO(
            0.5 * speed * s.upper, s.lower, linear.Neumann(s.terms, s.lower), lower_steps=10
        )
    ),
    "F2SA": Row(
        lambda s, speed: methods.F2SA(
            0.5 * speed * s.upper, s.lower, s.lower, penalty=3000.0, lower_steps=10
        ),
        bias=5e-3,
    ),
}


def made(name: str, case: Case, speed: float = 1.0) -> methods.AbstractMethod:
    """A method of the table with steps that suit the problem."""
    alike = {"quad_noise": "quad", "ridge_rows": "ridge"}.get(case.name, case.name)
    return METHODS[name].build(scales(alike), speed)


def start(method, case: Case):
    return method.init(case.problem, case.x0, case.y0, key=jax.random.key(7))


def run(method, case: Case, steps: int, *, state=None, data=None, key=None):
    """The last state of `bl.run` from x0 and y0, or from a state.

    One compilation serves every number of steps and all settings of a method on a problem.
    """
    state = start(method, case) if state is None else state
    key = jax.random.key(0) if key is None else key
    feed = (data or bl.Data()).feed(key, method.draws(case.problem))
    return _run(case.problem, method, feed, state, steps)


@jax.jit
def _run(problem, method, feed, state, steps):
    one = lambda _, s: bl.run(problem, method, s, data=feed, steps=1)[0]  # noqa: E731
    return jax.lax.fori_loop(0, steps, one, state)


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def distance(a, b) -> float:
    return float(np.linalg.norm(flat(a).astype(float) - flat(b).astype(float)))


def same_bits(a, b) -> bool:
    """Equal leaf by leaf, bit for bit; random keys by the integers behind them."""

    def plain(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(plain(p), plain(q)) for p, q in pairs)
