"""The lower problem as a penalty: minimisers of `g + s f` for several s, and differences in s.

The shared loop of F2SA, F2BA, F3SA, KwonDL and KwonSL. They differ in the schedule of the penalty,
the order of the difference, the estimator of the directions and the use of proximal anchors. First
derivatives only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import hypergrad, oracles, trees
from bilevel.estimators import SGD, AbstractEstimator
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, as_samples
from bilevel.schedules import AbstractSchedule
from bilevel.typing import Lower, Scalar, ScalarLike, Upper
from bilevel.updates import AbstractUpdate


class PenaltyState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    ys: tuple[Lower, ...]  # one per node j: follows the minimiser of g + (j/penalty) f
    estimates: tuple[Any, Any]  # memory of the estimator, for the gradients in y and in x
    updates: tuple[Any, tuple[Any, ...]]  # what the updates of x and of ys remember
    anchors: tuple[Lower, ...] | None = None  # one per node, if there are anchors

    @property
    def y(self) -> Lower:
        """The lower iterate at node 1, which follows the minimiser of `g + f/penalty`."""
        return self.ys[len(self.ys) // 2]


class Anchors(NamedTuple):
    """Proximal smoothing: adds `‖y_j − w_j‖²/(2 radius)` to each loss; w_j follows y_j."""

    radius: ScalarLike  # below 1/L, the losses become strongly convex
    relaxation: ScalarLike = 1.0  # w ← (1 − relaxation) w + relaxation y, after the lower steps


class Penalty(NamedTuple):
    """The shared loop with its components chosen; this defines a method of the family."""

    x_update: AbstractUpdate
    y_update: AbstractUpdate  # along ∇_y g + (j/penalty) ∇_y f, at every node j but 0
    z_update: AbstractUpdate  # along ∇_y g, at node 0
    penalty: AbstractSchedule
    lower_steps: int
    order: int = 1  # of the difference
    common_samples: bool = True  # of g, at all nodes; those of f always are
    estimator: AbstractEstimator = SGD()  # of the pairs (∇f's, ∇g's), in y and in x
    evaluations: int = 1  # of each gradient, by the estimator
    anchors: Anchors | None = None

    @property
    def nodes(self) -> tuple[int, ...]:
        return hypergrad.differences(self.order)[0]

    @property
    def y_updates(self) -> list[AbstractUpdate]:
        return [self.y_update if node else self.z_update for node in self.nodes]

    def draws(self, problem: Problem) -> Draws:
        """One batch of each level per lower step and one for x; of g one per node if not common."""
        once = self.lower_steps + 1
        return Draws(upper=once, lower=once if self.common_samples else len(self.nodes) * once)

    def price(self, problem: Problem) -> Price:
        """The oracle calls of one step: ∇f at every node except 0, ∇g at all nodes."""
        nodes = self.evaluations * len(self.nodes)
        moved, steps = self.evaluations * sum(map(bool, self.nodes)), self.lower_steps
        return Price(
            upper_grad_x=moved,
            upper_grad_y=steps * moved,
            lower_grad=steps * nodes,
            lower_grad_x=nodes,
        )

    def init(self, problem: Problem, x0: Upper, y0: Lower, key=None) -> PenaltyState:
        """The state before the first step."""
        x, ys = trees.copy(x0), tuple(trees.copy(y0) for _ in self.nodes)
        value = jnp.zeros((), trees.widest(ys))
        fs_x, fs_y = (tuple(like if node else None for node in self.nodes) for like in (x, y0))
        y_slopes, x_slopes = (fs_y, ys), ((value, fs_x), tuple(x for _ in self.nodes))
        estimates = tuple(
            self.estimator.init(lambda *_, shaped=shaped: trees.copy(shaped), (x, ys), None)
            for shaped in (y_slopes, x_slopes)
        )
        memory = [update.init(y) for update, y in zip(self.y_updates, ys, strict=True)]
        updates = self.x_update.init(x), tuple(memory)
        anchors = None if self.anchors is None else trees.copy(ys)
        return PenaltyState(jnp.zeros((), jnp.int32), x, ys, estimates, updates, anchors)

    def step(
        self, problem: Problem, state: PenaltyState, batch: Batch
    ) -> tuple[PenaltyState, dict[str, Scalar]]:
        """One upper step."""
        k, x, ys, (ey, ex), (sx, sy), anchors = state
        nodes, draws, penalty, held = self.nodes, self.draws(problem), self.penalty(k), self.anchors
        upper, lower = as_samples(batch.upper, draws.upper), as_samples(batch.lower, draws.lower)
        apart = 0 if self.common_samples else draws.upper
        lowers = [lower.skip(i * apart) for i in range(len(nodes))]

        def samples(t):
            return upper[t], tuple(lower[t] for lower in lowers)

        def y_slopes(at, sample):
            (x, ys), (upper, lowers) = at, sample
            fs = (
                oracles.upper_grad_y(problem, x, y, upper) if j else None
                for j, y in zip(nodes, ys, strict=True)
            )
            gs = (oracles.lower_grad(problem, x, y, b) for y, b in zip(ys, lowers, strict=True))
            return tuple(fs), tuple(gs)

        def x_slopes(at, sample):
            (x, ys), (upper, lowers) = at, sample
            (f, fs), gs = hypergrad.value_slopes(problem, x, ys, upper, lowers, self.order)
            return (f.astype(trees.widest(ys)), fs), gs

        def body(carry, t):
            ys, ey, sy = carry
            (fs, gs), ey = self.estimator.step(y_slopes, (x, ys), samples(t), ey, k)
            along = [
                trees.axpy(j / penalty, f, g) if j else g
                for j, f, g in zip(nodes, fs, gs, strict=True)
            ]
            if held is not None and anchors is not None:
                along = [
                    trees.axpy(1 / jnp.asarray(held.radius), trees.sub(y, w), d)
                    for d, y, w in zip(along, ys, anchors, strict=True)
                ]
            moved = [
                update.step(d, memory, y, k)
                for update, d, memory, y in zip(self.y_updates, along, sy, ys, strict=True)
            ]
            ys, sy = zip(*moved, strict=True)
            ys = tuple(problem.lower_set.project(y, x) for y in ys)
            nearest = nodes.index(0 if 0 in nodes else 1)
            return (ys, ey, sy), trees.norm(along[nearest])

        (ys, ey, sy), norms = jax.lax.scan(body, (ys, ey, sy), jnp.arange(self.lower_steps))
        if held is not None and anchors is not None:
            anchors = trees.lerp(anchors, ys, held.relaxation)
        ((f, fs), gs), ex = self.estimator.step(x_slopes, (x, ys), samples(self.lower_steps), ex, k)
        h = hypergrad.weigh_slopes(fs, gs, penalty, self.order)
        x, sx = self.x_update.step(h, sx, x, k)
        info = {
            "upper": f,
            "hypergrad_norm": trees.norm(h),
            "lower_grad_norm": norms[-1],
            "penalty": penalty,
        }
        x = problem.upper_set.project(x)
        return PenaltyState(k + 1, x, ys, (ey, ex), (sx, sy), anchors), info
