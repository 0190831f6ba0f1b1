"""A design by the hypergradient, with settings that work."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from bilevel import methods
from bilevel.apps.networks.assignment import Equilibrium, equilibrium, links_of
from bilevel.apps.networks.losses import Design, Evaluator, Kind, problem, start
from bilevel.apps.networks.network import Network
from bilevel.driver import Result
from bilevel.methods import AbstractMethod
from bilevel.selection import solve
from bilevel.updates import FromOptax

STEP = 0.1  # of x in [0, 1], the first one; it falls to zero as a cosine
TOLL = 3.0  # times the free travel time: the largest toll


class Designed(NamedTuple):
    x: Float[np.ndarray, " k"]
    value: float  # total time and price
    history: Float[np.ndarray, " evaluations"]  # the best value so far
    result: Result


def plan(
    network: Network,
    kind: Kind,
    only: Sequence[str] = (),
    *,
    most: float | None = None,
    price: float = 0.0,
) -> Design:
    """What may change.

    Args:
        only: labels such as `6-8`; all links when empty.
        most: the largest toll, in units of time, or addition to a capacity, relative to it; three
            times the longest free travel time, or 1, when absent.
        price: of the largest addition to the capacity of a link, in units of total time.

    Raises:
        ValueError: a link is unknown.
    """
    found = [network.find(label) for label in only] or [np.arange(network.links)]
    links = np.unique(np.concatenate(found))
    if kind is Kind.TOLLS:
        top = TOLL * network.free.max() if most is None else most
        return Design(network, kind, links, np.full(len(links), top), np.zeros(len(links)))
    top = (1.0 if most is None else most) * network.capacity[links]
    return Design(network, kind, links, top, np.full(len(links), price))


def method(steps: int) -> AbstractMethod:
    """Projected Adam along exact hypergradients; the lower step is a full equilibrium."""
    update = FromOptax(lambda size: optax.adam(optax.cosine_decay_schedule(size, steps)), STEP)
    return methods.BA(x_update=update, lower_steps=1)


def improve(evaluator: Evaluator, *, steps: int = 100, progress: bool | None = None) -> Designed:
    """Design by the hypergradient from nothing changed; one equilibrium a step.

    Links that are built or not are relaxed to shares of themselves, and the result rounded at each
    of its values, the best kept; that costs some more equilibria.
    """
    d = evaluator.design
    first = evaluator.count
    with _double_precision():
        x0 = jnp.zeros(len(d.links))
        made = problem(evaluator)
        options: dict[str, Any] = {"steps": steps, "log_every": 1, "certify": False}
        result = solve(made, method(steps), x0, start(evaluator, x0), progress=progress, **options)
        x = np.asarray(result.x)
        seen = np.asarray(result.history["upper"][1:])
    if d.kind is Kind.LINKS:
        cuts = np.unique(np.r_[x[x > 0.02], 1.1])
        tried = [(evaluator.loss(y), y) for y in ((x >= cut).astype(float) for cut in cuts)]
        value, x = min(tried, key=lambda one: one[0])
    else:
        value = evaluator.loss(x)
    history = np.minimum.accumulate(np.r_[seen, value])
    return Designed(x, value, history[: evaluator.count - first], result)


@contextlib.contextmanager
def _double_precision() -> Iterator[None]:
    """float64 in every thread: equilibria are called from one of JAX's own."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def first_best_tolls(network: Network) -> tuple[Equilibrium, Float[np.ndarray, " links"]]:
    """The flows of least total time, and the tolls `v t'(v)` that make them an equilibrium."""
    best = equilibrium(network, links_of(network, marginal=True))
    return best, best.flows * links_of(network).slope(best.flows)
