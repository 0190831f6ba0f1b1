"""Points distributed like `exp(−g(x, ·)/T)`: the lower problem at a temperature."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from bilevel import oracles, trees
from bilevel.fields import Checked, count, nonnegative, positive
from bilevel.lower.solvers import AbstractLowerSolver, ToTolerance
from bilevel.oracles import Price
from bilevel.problem import Problem
from bilevel.sets import as_pytree
from bilevel.typing import Data, Lower, RandomKey, Scalar, Upper


class Cloud(NamedTuple):
    """Weighted points that stand for a distribution of y."""

    y: Lower  # with a leading axis of points
    weights: Float[Array, " points"]  # sum to 1
    memory: Any  # what the sampler starts from next time
    acceptance: Scalar  # part of the proposals taken; NaN where there are none


class AbstractGibbs(Checked):
    """Represents the Gibbs measure `π_x ∝ exp(−g(x, ·)/T)` by a cloud of points."""

    @property
    @abc.abstractmethod
    def points(self) -> float:
        """How many points a cloud has; NaN where that is known at a draw alone."""

    @abc.abstractmethod
    def init(self, y0: Lower, key: RandomKey) -> Any:
        """What the sampler starts from."""

    @abc.abstractmethod
    def draw(
        self,
        problem: Problem,
        x: Upper,
        memory: Any,
        batch: Data,
        *,
        temperature: Scalar,
        first: Any,
        key: RandomKey,
    ) -> Cloud:
        """The cloud at x.

        Args:
            memory: from `init`, or of the last cloud.
            temperature: T.
            first: whether nothing was drawn before.
        """

    @abc.abstractmethod
    def price(self) -> Price:
        """The oracle calls of one draw; those of a solve to tolerance left out."""


class MALA(AbstractGibbs):
    """Many parallel Langevin chains, each step accepted or refused by Metropolis and Hastings.

    A proposal is `y − h/T ∇_y g + √(2h) ξ`. The chains go on where the last draw at another x
    left them. They start around y0, and the first draw begins with a descent of each.
    Needs `h` well below `T/L`: with `h = 0.2 T` to `0.5 T` and L = 2 about all are accepted.

    Attributes:
        chains: how many.
        steps: of each chain in a draw.
        step_size: h, in units of `y²`.
        spread: standard deviation of the starting points around y0.
        settle: the first descent.
        adjusted: refuse proposals (otherwise the unadjusted algorithm, with a bias of order h).

    Reference: Roberts, Tweedie. "Exponential convergence of Langevin distributions and their
    discrete approximations". Bernoulli 1996.
    """

    chains: int = count(2000)
    steps: int = count(20)
    step_size: ScalarLike = nonnegative(2e-3)
    spread: ScalarLike = positive(1.0)
    settle: AbstractLowerSolver = eqx.field(default_factory=lambda: ToTolerance(1e-3, 200))
    adjusted: bool = eqx.field(static=True, default=True)

    @property
    def points(self) -> float:
        return self.chains

    def price(self) -> Price:
        calls = self.chains * (self.steps + 1)
        return Price(lower_value=calls, lower_grad=calls)

    def init(self, y0, key):
        def around(key):
            return trees.axpy(jnp.asarray(self.spread), trees.random_like(key, y0), y0)

        return jax.vmap(around)(jax.random.split(key, self.chains))

    def draw(self, problem, x, memory, batch, *, temperature, first, key):
        dtype = trees.widest(memory)
        T, h = temperature.astype(dtype), jnp.asarray(self.step_size, dtype)

        def settled(y):
            return self.settle.solve(problem, x, y, batch).y

        def looked_at(y):  # E = g/T, and its gradient
            E = oracles.lower_value(problem, x, y, batch).astype(dtype) / T
            return E, trees.scale(1 / T, oracles.lower_grad(problem, x, y, batch))

        def log_density(new, y, slope):  # of proposing `new` at y, up to a constant
            off = trees.axpy(h, slope, trees.sub(new, y))
            return -trees.dot(off, off) / (4 * h)

        def move(at, noise, threshold):
            y, E, slope = at
            new = trees.axpy(jnp.sqrt(2 * h), noise, trees.axpy(-h, slope, y))
            new_E, new_slope = looked_at(new)
            log_ratio = E - new_E + log_density(y, new, new_slope) - log_density(new, y, slope)
            chance = jnp.exp(jnp.minimum(log_ratio, 0))
            taken = threshold < chance if self.adjusted else jnp.isfinite(new_E)
            return trees.where(taken, (new, new_E, new_slope), at), chance

        def step(at, key):  # of all chains
            for_noise, for_choice = jax.random.split(key)
            noise = trees.random_like(for_noise, at[0])
            thresholds = jax.random.uniform(for_choice, (self.chains,), dtype)
            with oracles.mapped(self.chains):
                at, chances = jax.vmap(move)(at, noise, thresholds)
            return at, jnp.mean(chances)

        y = jax.lax.cond(first, jax.vmap(settled), lambda y: y, memory)
        with oracles.mapped(self.chains):
            at = (y, *jax.vmap(looked_at)(y))
        (y, _, _), accepted = jax.lax.scan(step, at, jax.random.split(key, self.steps))
        weights = jnp.full(self.chains, 1 / self.chains, dtype)
        return Cloud(y, weights, y, jnp.mean(accepted))


class Quadrature(AbstractGibbs):
    """Fixed nodes weighted by `exp(−g/T)`: exact up to their spacing, for a y of few entries.

    Attributes:
        nodes: `nodes(x) -> (y, measure)`, y with a leading axis of nodes and the measure of
            each; they may move with x.
    """

    nodes: Callable = eqx.field(converter=as_pytree)

    @property
    def points(self) -> float:
        return float("nan")

    def price(self) -> Price:
        return Price(lower_value=self.points)

    def init(self, y0, key):
        return None

    def draw(self, problem, x, memory, batch, *, temperature, first, key):
        y, measure = self.nodes(x)
        with oracles.mapped(len(measure)):
            g = jax.vmap(lambda y: oracles.lower_value(problem, x, y, batch))(y)
        logits = jnp.log(measure) - (g / temperature.astype(g.dtype)).astype(measure.dtype)
        return Cloud(y, jax.nn.softmax(logits), None, jnp.full((), jnp.nan, measure.dtype))
