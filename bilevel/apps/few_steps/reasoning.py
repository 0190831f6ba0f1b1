"""RECKONING: facts are learned by a few gradient steps on them, then questions are answered.

A world is a list of facts "a leads to b". The lower problem adapts the network to the facts of a
world, y being the change of its weights, from 0; the upper one answers questions about the world
with the adapted network, which does not see the facts:

    min over x of  mean over worlds of  CE(questions; x + r ⊙ y_T(x))
    y_T(x): T steps on CE(facts; x + r ⊙ y), with a rate r of every tensor that is learned, too

Chen, Weiss, Mitchell, Celikyilmaz, Bosselut. "RECKONING: reasoning through dynamic knowledge
encoding". NeurIPS 2023, arXiv:2305.06349. Beside it stands the same network with all facts in its
input, trained for as many steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, Scalar

from bilevel import trees
from bilevel.lower import Gradient
from bilevel.methods import BiOITD
from bilevel.problem import Batch, Problem, RepeatedBatch
from bilevel.updates import FromOptax

SYMBOLS = 20
RELEVANT, DISTRACTORS = 6, 6
LONGEST = 2 * (RELEVANT + DISTRACTORS) + 1  # facts, then the question


class Worlds(NamedTuple):
    """Facts, of which the first six may be asked for; further ones count if their weight is 1."""

    causes: Int[Array, "worlds facts"]
    effects: Int[Array, "worlds facts"]
    there: Float[Array, "worlds facts"]


def worlds(key: Array, count: int, distractors: int | None = None) -> Worlds:
    """Random worlds, with 0 to 6 distractors if their number is `None`."""
    a, b, c = jax.random.split(key, 3)
    facts = RELEVANT + DISTRACTORS
    causes = jax.vmap(lambda k: jax.random.permutation(k, SYMBOLS)[:facts])(
        jax.random.split(a, count)
    )
    effects = jax.random.randint(b, (count, facts), 0, SYMBOLS)
    numbers = jax.random.randint(c, (count, 1), 0, DISTRACTORS + 1)
    if distractors is not None:
        numbers = jnp.full_like(numbers, distractors)
    return Worlds(causes, effects, (jnp.arange(facts)[None] < RELEVANT + numbers).astype(float))


def start(width: int = 32, layers: int = 2, *, key: Array) -> PyTree:
    """A transformer with one head: random weights."""
    keys = iter(jax.random.split(key, 3 + 6 * layers))

    def matrix(rows, columns):
        return jax.random.normal(next(keys), (rows, columns)) / rows**0.5

    def layer():
        attention = {name: matrix(width, width) for name in ("query", "key", "value", "out")}
        return attention | {"up": matrix(width, 2 * width), "down": matrix(2 * width, width)}

    return {
        "symbols": matrix(SYMBOLS, width) * SYMBOLS**0.5,
        "places": matrix(LONGEST, width),
        "layers": [layer() for _ in range(layers)],
        "answer": matrix(width, SYMBOLS),
    }


def scores(
    net: PyTree, symbols: Int[Array, " t"], there: Float[Array, " t"]
) -> Float[Array, " symbols"]:
    """What follows the last of some symbols, of which those count that are there."""
    h = net["symbols"][symbols] + net["places"][LONGEST - len(symbols) :]
    for layer in net["layers"]:
        z = _normalized(h)
        fit = (z @ layer["query"]) @ (z @ layer["key"]).T / h.shape[1] ** 0.5
        heed = jax.nn.softmax(jnp.where(there[None] > 0, fit, -1e9), axis=-1)
        h = h + heed @ (z @ layer["value"]) @ layer["out"]
        h = h + jax.nn.relu(_normalized(h) @ layer["up"]) @ layer["down"]
    return _normalized(h)[-1] @ net["answer"]


def _normalized(h: Float[Array, "t width"]) -> Float[Array, "t width"]:
    centred = h - h.mean(1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(1, keepdims=True) + 1e-6)


def recalled(net: PyTree, causes: Int[Array, " n"]) -> Float[Array, "n symbols"]:
    """Answers from the weights alone."""
    return jax.vmap(lambda one: scores(net, one[None], jnp.ones(1)))(causes)


def in_context(net: PyTree, world: Worlds) -> Float[Array, "n symbols"]:
    """Answers with all facts of one world in the input, to each fact that may be asked for."""
    facts = jnp.stack([world.causes, world.effects], 1).reshape(-1)
    there = jnp.append(jnp.repeat(world.there, 2), jnp.ones(1))
    return jax.vmap(lambda one: scores(net, jnp.append(facts, one), there))(world.causes[:RELEVANT])


def adapted(x: PyTree, y: PyTree) -> PyTree:
    """The network with a change of its weights, each tensor at its own rate."""
    return trees.map(lambda w, r, d: w + jnp.exp(r) * d, x["net"], x["rates"], y)


def problem() -> Problem:
    """The two losses; batches are `Worlds`, and y has a leading axis of worlds."""

    def upper(x, y, batch: Worlds) -> Scalar:
        def of(change, world: Worlds):
            answers = recalled(adapted(x, change), world.causes[:RELEVANT])
            return _cross_entropy(answers, world.effects[:RELEVANT]).mean()

        return jax.vmap(of)(y, batch).mean()

    def lower(x, y, batch: Worlds) -> Scalar:
        def of(change, world: Worlds):
            losses = _cross_entropy(recalled(adapted(x, change), world.causes), world.effects)
            return (losses * world.there).sum() / world.there.sum()

        return jax.vmap(of)(y, batch).sum()

    return Problem(upper, lower)


def _cross_entropy(answers, right):
    return optax.softmax_cross_entropy_with_integer_labels(answers, right)


def learn(
    *, steps: int = 400, adapt: int = 3, count: int = 16, step_size: float = 2e-3, key: Array
) -> PyTree:
    """A network and rates from which a few steps on facts are worth most.

    Args:
        steps: of Adam for x, each on `count` new worlds.
        adapt: T, the steps on the facts.
    """
    first, draws = jax.random.split(key)
    net = start(key=first)
    x0 = {"net": net, "rates": trees.map(lambda w: jnp.full((), -1.0, w.dtype), net)}
    y0 = trees.map(lambda w: jnp.zeros((count, *w.shape), w.dtype), net)
    method = BiOITD(FromOptax(optax.adam, step_size), 1.0, lower_steps=adapt, warm=False)
    losses = problem()
    state = method.init(losses, x0, y0)

    def step(state, key):
        seen = worlds(key, count)  # both levels see the same
        return method.step(losses, state, Batch(seen, RepeatedBatch(seen)))[0], None

    keys = jax.random.split(draws, steps)
    return jax.jit(lambda state: jax.lax.scan(step, state, keys)[0])(state).x


def learn_in_context(
    *, steps: int = 400, count: int = 16, step_size: float = 2e-3, key: Array
) -> PyTree:
    """The same network, trained with the facts in its input."""
    first, draws = jax.random.split(key)
    net, adam = start(key=first), FromOptax(optax.adam, step_size)

    def loss(net, seen: Worlds):
        def of(world):
            return _cross_entropy(in_context(net, world), world.effects[:RELEVANT]).mean()

        return jax.vmap(of)(seen).mean()

    def step(carry, key):
        net, memory = carry
        slope = jax.grad(loss)(net, worlds(key, count))
        return adam.step(slope, memory, net, jnp.zeros((), jnp.int32)), None

    keys = jax.random.split(draws, steps)
    return jax.jit(lambda net: jax.lax.scan(step, (net, adam.init(net)), keys)[0][0])(net)


def accuracy(x: PyTree, seen: Worlds, *, adapt: int = 3) -> float:
    """Share of right answers of the adapted network."""

    @jax.jit
    def share(x, seen: Worlds):
        y0 = trees.map(lambda w: jnp.zeros((len(seen.causes), *w.shape), w.dtype), x["net"])
        y = Gradient(1.0, adapt).solve(problem(), x, y0, seen).y

        def right(change, world):
            answers = recalled(adapted(x, change), world.causes[:RELEVANT])
            return (answers.argmax(1) == world.effects[:RELEVANT]).mean()

        return jax.vmap(right)(y, seen).mean()

    return float(share(x, seen))


def accuracy_in_context(net: PyTree, seen: Worlds) -> float:
    """Share of right answers of the network that sees the facts."""

    def right(world):
        return (in_context(net, world).argmax(1) == world.effects[:RELEVANT]).mean()

    return float(jax.vmap(right)(seen).mean())
