"""The pure loop: one scan over the steps of a method."""

import functools

import jax
from jaxtyping import PyTree

from bilevel import sharding
from bilevel.data import Data, Feed, on_parts
from bilevel.driver.validate import check_blocks, check_method, check_rows, check_steps
from bilevel.methods.base import AbstractMethod, State
from bilevel.problem import Problem
from bilevel.typing import RandomKey


def run(
    problem: Problem,
    method: AbstractMethod,
    state: State,
    *,
    data: Data | Feed | None = None,
    key: RandomKey | None = None,
    steps: int,
) -> tuple[State, dict[str, PyTree]]:
    """`steps` updates of a method, as one pure function: jit it, vmap it, differentiate it.

    Which samples step k sees depends on the key and on k alone (`state.k` counts on), so two
    halves give the same as the whole, bit for bit. Over seeds, map the key; over step sizes, map
    the method, whose numbers are array leaves; over problems, map the problem.

    Args:
        state: from `method.init(problem, x0, y0, key=...)`, or of an earlier run.
        data: `bl.Data` of arrays or samplers. Under a `jit` of your own, pass
            `data.feed(key, method.draws(problem))` as an argument to keep the arrays out of the
            compiled code.
        key: orders or draws the samples; `jax.random.key(0)` when absent.
        steps: a Python integer, fixed when compiled.

    Returns:
        The last state and the history: what each step reported, on a leading axis of length
        `steps`.

    Raises:
        Unsupported: the problem has structure that the method does not handle.
        TypeError: the data come from an iterator; `bl.solve` takes those.
    """
    check_steps(steps=steps)
    check_method(method, problem)
    check_rows(problem, state.y)
    data = Data() if data is None else data
    check_blocks(method, problem, data)
    method = method.for_data(data.batches)
    feed = as_feed(data, key, method, problem)
    problem = on_parts(problem, feed)
    method.check_parts(feed.parts)
    mesh = sharding.mesh_of((state, feed))
    problem, method, feed = sharding.replicate_on((problem, method, feed), mesh)
    state = sharding.replicate_on(state, mesh, beside=(state.x, state.y))
    return _scan(problem, method, feed, state, steps, sharding.shardings_of(state))


@functools.partial(jax.jit, static_argnames=("steps", "places"))
def _scan(problem: Problem, method: AbstractMethod, feed: Feed, state: State, steps: int, places):
    def body(state, _):
        state, info = method.step(problem, state, feed.batch(state.k))
        return sharding.constrain(state, places), info

    return jax.lax.scan(body, state, None, length=steps)


def as_feed(
    data: Data | Feed | None, key: RandomKey | None, method: AbstractMethod, problem: Problem
) -> Feed:
    """Data prepared for a method; no data is `None` for every batch."""
    if isinstance(data, Feed):
        return data
    key = jax.random.key(0) if key is None else key
    return (Data() if data is None else data).feed(key, method.draws(problem))
