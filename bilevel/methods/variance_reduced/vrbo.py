"""VRBO: directions that are updated by a difference after every move, with periodic restarts.

Yang, Ji, Liang. "Provably faster algorithms for bilevel optimization". NeurIPS 2021,
arXiv:2106.04692.
Differs from the paper: x is projected on `upper_set` when there is one.
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.estimators import ENDLESS, Path, Refresh, follow, most_batches
from bilevel.linear import AbstractLinear, Neumann
from bilevel.methods.base import AbstractMethod, Constants, count, series_terms
from bilevel.methods.variance_reduced.sampled import Directions, Point, Sampled
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.typing import Lower, RandomKey, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


class VRBOState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # follows y*(x)
    directions: Directions  # estimates at (x, y)
    key: RandomKey | None  # for the linear solver, if it draws at random
    updates: tuple[Any, Any]  # memories of the x and y updates


class VRBO(AbstractMethod):
    """Double loop with path-integrated differences (SPIDER) on both levels.

    Every `period` steps hypergradient and lower gradient are taken anew on all the data at once (or
    on a big batch). Then x moves once and y `lower_steps` times, and after each of these moves both
    directions get the difference between the new and the old (x, y), on the same samples. The mean
    squared hypergradient is `O(1/K)` with batches and periods of order `ε^(−1/2)` and restarts of
    order `1/ε`: `ε^(−3/2)` samples; with restarts on all the data no noise is left at the end. Made
    for a lower loss strongly convex in y and sample losses that are smooth, not only their
    means; the y step must be below 1/L of single batches. Without noise both directions are
    exact at any setting.

    Attributes:
        linear: solver of the adjoint system; its step size must be at most 1/L.
        lower_steps: y moves after each x move.
        period: steps of x between restarts; as many as the data have batches when absent.
        restart: batches that make up the big batch of a restart; all the data when absent, 16 where
            these come from a sampler or a stream.
        batches: how many mini-batches make up the data; `solve` and `run` set it.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=2e-2)
    y_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    linear: AbstractLinear = eqx.field(default_factory=lambda: Neumann(10, 0.1))
    lower_steps: int = count(5, grows=True)
    period: int | None = count(None)
    restart: int | None = count(None)
    batches: int | None = count(None)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.HYPERGRADIENT})
    memory: ClassVar[str] = "3 x, 3 y"
    rate: ClassVar[str] = "ε^(−3/2)"
    paper: ClassVar[str] = "yang2021provably"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """Constant steps of order 1/L, 2κ lower steps; period and restart of order `√K`, or 16."""
        L, often = constants.L, ENDLESS if steps is None else math.ceil(math.sqrt(steps))
        linear = Neumann(series_terms(constants, 1e-3) - 1, 1 / L)
        lower_steps = math.ceil(2 * L / constants.mu)
        return cls(0.2 / constants.hyper_L, 0.5 / L, linear, lower_steps, often, often)

    def for_data(self, batches: Batch) -> Self:
        return dataclasses.replace(self, batches=most_batches(batches))

    @property
    def _refresh(self) -> Refresh:
        return Refresh(self.period, self.restart, self.batches)

    def draws(self, problem: Problem) -> Draws:
        return Sampled(problem, self.linear).draws(1 + self.lower_steps + self._refresh.drawn)

    def price(self, problem: Problem) -> Price:
        """The mean over a period, in batches."""
        moves, refresh = 1 + self.lower_steps, self._refresh
        return Sampled(problem, self.linear).price(2 * moves + refresh.size / refresh.period)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> VRBOState:
        x, y = trees.copy(x0), trees.copy(y0)
        directions = Sampled(problem, self.linear).zeros(Point(x, y))
        key = jax.random.key(0) if key is None else jnp.copy(key)
        key = key if self.linear.needs_key else None
        updates = self.x_update.init(x), self.y_update.init(y)
        return VRBOState(jnp.zeros((), jnp.int32), x, y, directions, key, updates)

    def step(
        self, problem: Problem, state: VRBOState, batch: Batch
    ) -> tuple[VRBOState, dict[str, Scalar]]:
        k, x, y, directions, key, (sx, sy) = state
        key, now = (None, None) if key is None else jax.random.split(key)
        estimand, moves, old = Sampled(problem, self.linear), 1 + self.lower_steps, Point(x, y)
        refresh = self._refresh
        samples = estimand.samples(batch, moves + refresh.drawn, now)
        if refresh.takes_all(batch):
            at_large, large = estimand.everything(batch.whole, now)
        else:
            at_large, large = estimand.large(batch, moves, refresh.drawn, now)
        d = jax.lax.cond(k % refresh.period == 0, lambda: at_large(old, large), lambda: directions)
        x, sx = self.x_update.step(d.x, sx, x, k)
        x = problem.upper_set.project(x)
        path = follow(estimand, Point(x, y), samples[0], Path(d, old))

        def body(carry, t):
            path, sy = carry
            y, sy = self.y_update.step(path.direction.y, sy, path.point.y, k)
            return (follow(estimand, Point(x, y), samples[t], path), sy), None

        (path, sy), _ = jax.lax.scan(body, (path, sy), jnp.arange(1, moves))
        info = {
            "upper": d.value,
            "hypergrad_norm": trees.norm(d.x),
            "lower_grad_norm": trees.norm(path.direction.y),
        }
        return VRBOState(k + 1, x, path.point.y, path.direction, key, (sx, sy)), info
