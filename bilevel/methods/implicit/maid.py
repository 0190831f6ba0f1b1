"""MAID: gradient descent with a line search that inexact values and gradients cannot fool.

Salehi, Mukherjee, Roberts, Ehrhardt. "An adaptively inexact first-order method for bilevel
optimization with application to hyperparameter learning". SIAM J. Math. Data Sci. 2025,
arXiv:2308.10098.
Differs from the paper: the error bound is derived anew, with ‖v‖ in the place of ‖∇_y f‖/μ;
constants are measured at the iterates, not known; x may have an upper set; and unless
`as_published`, values are corrected by the adjoint, a step is first tried at a length the last two
gradients tell, and accuracy is spent only where it is short.
"""

from typing import ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ScalarLike

from bilevel import fields, oracles, trees
from bilevel.linear.tolerance import conjugate
from bilevel.lower import AbstractLowerSolver, NewtonCG
from bilevel.methods.base import AbstractMethod, Constants
from bilevel.methods.implicit import curvature as measured
from bilevel.methods.implicit import line_search
from bilevel.methods.implicit.curvature import CurvatureEstimates
from bilevel.methods.implicit.maid_state import (
    Gradient,
    MAIDState,
    Round,
    Seen,
    as_like,
    count,
    norm_like,
)
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, RepeatedBatch, Structure
from bilevel.typing import Lower, Scalar, Upper

_KNOWN = fields.optional()


def _number(default: float):
    return fields.nonnegative(default)


class MAID(AbstractMethod):
    """Deterministic descent without tuning: accuracies and step sizes are found on the way.

    A step solves the lower problem to `eps` and the adjoint system to `delta`, until the error of
    the hypergradient z is certified to be below `(1 − slack) ‖z‖`; then it looks for a step size
    at which l decreases for certain, by `decrease · a ‖z‖²` at least, and refines both accuracies
    where it finds none. Every accepted step decreases `l(x) = f(x, y*(x))`, and `∇l(x_k) → 0` for
    smooth f and g, g strongly convex in y. What is certain is so up to the constants: give those
    known; the others are measured at the iterates by power steps, and enlarged by `safety`.

    A step costs what it needs; `info` counts. In single precision a change of l within rounding is
    accepted, too, where the certified gradient and the curvature of the last move foretell a
    decrease. It ends with `exhausted` = 1 where rounding leaves no step at all (in double precision
    near `‖∇l‖ = 1e-7 √|l|`); x then stays, and `bl.solve` stops, "stalled" in single precision.
    Loops of unknown length inside: it jits, scans and maps, and cannot be differentiated in reverse
    mode. Meant for full batches: accuracy is of no use on samples.

    With an upper set steps are projected, `‖x⁺ − x‖/a` is in the place of `‖z‖`; this is sound (the
    projection only helps) and beyond the paper.

    Attributes:
        eps, delta: first accuracies of y, and of the residual of the adjoint system.
        step_size: the first one tried; absent, one that moves x by a tenth of `1 + ‖x‖`.
        shrink, grow: of the step size, after a trial that fails and after a step.
        sharpen, relax: of the accuracies, likewise.
        slack, decrease: η and λ of the paper; λ is η² when absent. λ < η.
        trials: step sizes tried before accuracy is blamed; one more after each such failure.
        lower_solver: any of `bilevel.lower` with a `tol`, which is set to what is needed.
        warm_adjoint: start each adjoint solve from the last.
        mu, cross, upper_L, upper_cross, hessian_lipschitz, cross_lipschitz: μ, `‖∂²g/∂x∂y‖`,
            `‖∂²f/∂y²‖`, `‖∂²f/∂x∂y‖`, and the Lipschitz constants in y of `∂²g/∂y²` and
            `∂²g/∂x∂y`, where known. The third counts together with the fifth, and the fourth with
            the last.
        safety: factor on constants that are measured.
        convex_upper: f is convex in y, which sharpens published values a little.
        min_eps: accuracy below which the method gives up; what rounding allows is found anyway.
        as_published: no corrected values, no lengths from gradients, one accuracy for all.
        max_cg, max_rounds: caps on one adjoint solve, and on the refinements of one step.
    """

    eps: ScalarLike = _number(0.1)
    delta: ScalarLike = _number(0.1)
    step_size: ScalarLike | None = fields.positive(None, converter=_KNOWN)
    shrink: ScalarLike = _number(0.5)
    grow: ScalarLike = _number(10 / 9)
    sharpen: ScalarLike = _number(0.5)
    relax: ScalarLike = _number(1.25)
    slack: ScalarLike = _number(0.5)
    decrease: ScalarLike | None = fields.positive(1e-4, converter=_KNOWN)
    trials: int = eqx.field(static=True, default=5)
    lower_solver: AbstractLowerSolver = eqx.field(default_factory=NewtonCG)
    warm_adjoint: bool = eqx.field(static=True, default=True)
    mu: ScalarLike | None = fields.positive(None, converter=_KNOWN)
    cross: ScalarLike | None = fields.nonnegative(None, converter=_KNOWN)
    upper_L: ScalarLike | None = fields.nonnegative(None, converter=_KNOWN)
    upper_cross: ScalarLike | None = fields.nonnegative(None, converter=_KNOWN)
    hessian_lipschitz: ScalarLike | None = fields.nonnegative(None, converter=_KNOWN)
    cross_lipschitz: ScalarLike | None = fields.nonnegative(None, converter=_KNOWN)
    safety: ScalarLike = _number(1.5)
    convex_upper: bool = eqx.field(static=True, default=False)
    min_eps: ScalarLike = _number(0.0)
    as_published: bool = eqx.field(static=True, default=False)
    max_cg: int = eqx.field(static=True, default=2000)
    max_rounds: int = eqx.field(static=True, default=100)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "3 x, 6 y"
    rate: ClassVar[str] = ""
    paper: ClassVar[str] = "salehi2025adaptively"

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """The constants that are known, and a first step of `1/hyper_L`; any horizon."""
        return cls(step_size=1 / constants.hyper_L, mu=constants.mu, cross=constants.cross)

    def __check_init__(self) -> None:
        if not hasattr(self.lower_solver, "tol"):
            raise TypeError(
                f"lower_solver is {self.lower_solver!r}; a solver of bilevel.lower that stops at a "
                "tolerance is needed, such as NewtonCG() or ToTolerance()."
            )

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        """A mean over 15 steps on `problems.quad()`; what a step takes depends on the problem.

        Without the products of third order that measure curvature: two a step, more at first.
        """
        return Price(upper_grad=4, lower_grad=10, hvp=24, cross=10, cross_transposed=6)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> MAIDState:
        key, now = jax.random.split(jax.random.key(0) if key is None else key)
        x, dtype = trees.copy(x0), trees.widest((x0, y0))
        zero, none = jnp.zeros((), dtype), count(0)
        state = MAIDState(
            k=none,
            x=problem.upper_set.project(x),
            y=trees.copy(y0),
            v=trees.zeros_like(y0),
            z=trees.zeros_like(x0),
            move=trees.zeros_like(x0),
            step_size=zero if self.step_size is None else as_like(self.step_size, zero),
            eps=as_like(self.eps, zero),
            delta=as_like(self.delta, zero),
            sizes=measured.start(y0, now),
            key=key,
            lower_steps=none,
            cg_steps=none,
            gradients=none,
            exhausted=jnp.asarray(False),
            seen=Seen(zero, zero, zero, zero),
        )
        return trees.copy(state)

    def step(
        self, problem: Problem, state: MAIDState, batch: Batch
    ) -> tuple[MAIDState, dict[str, Scalar]]:
        def unfinished(at: Round):
            return ~at.accepted & ~at.state.exhausted & (at.rounds < self.max_rounds)

        trials, none, no = jnp.asarray(self.trials, jnp.int32), count(0), jnp.asarray(False)
        start = Round(state, trials, none, started=no, accepted=no)
        end = jax.lax.while_loop(unfinished, lambda at: self._round(problem, batch, at), start)
        new = end.state._replace(k=state.k + 1)
        info = new.seen._asdict() | {
            "eps": new.eps,
            "step_size": new.step_size,
            "accepted": end.accepted.astype(new.eps.dtype),
            "exhausted": new.exhausted.astype(new.eps.dtype),
            "lower_steps": new.lower_steps,
            "cg_steps": new.cg_steps,
        }
        return new, info

    # --- one round ----------------------------------------------------------------------------

    def _round(self, problem: Problem, batch: Batch, at: Round) -> Round:
        """A gradient, and if it is certified to point uphill, a line search; else sharpen."""
        fresh = (at.state.k == 0) & (at.rounds == 0)
        state, h = self._gradient(problem, batch, at.state, fresh, at.rounds == 0)
        a = jnp.where(at.started, state.step_size, line_search.first_step_size(self, state, h.z))
        _, _, length = line_search.moved(problem, state.x, h.z, a)
        allowed = (1 - as_like(self.slack, a)) * length
        certified = h.error_from_y + h.error_from_v <= allowed

        found = line_search.search(self, problem, batch, state, h, a, at.trials, certified)
        accepted, failed = found.found, certified & ~found.found
        # What is short of accuracy: y, v or both.
        short_y = ~accepted & (failed | (h.error_from_y >= allowed / 2))
        short_v = ~accepted & ~failed & (h.error_from_v >= allowed / 2)
        exhausted = ~accepted & (
            (short_y & (h.stuck_y | (state.eps <= as_like(self.min_eps, a))))
            | (short_v & h.stuck_v)
            | (failed & ~found.blurred)
            | ~jnp.isfinite(length)
        )
        if self.as_published:
            short_y = short_v = ~accepted
        sharpen, relax = as_like(self.sharpen, a), as_like(self.relax, a)

        def adapted(accuracy, short):
            return accuracy * jnp.where(accepted, relax, jnp.where(short, sharpen, 1))

        # A step size is settled only by a gradient that is certified.
        settled = at.started | certified
        failing = jnp.where(settled, found.longest, at.state.step_size)
        new = state._replace(
            x=trees.where(accepted, found.x, state.x),
            y=trees.where(accepted, found.y, h.y),
            v=h.v,
            z=trees.where(accepted, h.z, state.z),
            move=trees.where(accepted, found.move, state.move),
            step_size=jnp.where(accepted, as_like(self.grow, a) * found.step_size, failing),
            eps=adapted(state.eps, short_y),
            delta=adapted(state.delta, short_v),
            lower_steps=state.lower_steps + found.lower_steps,
            gradients=state.gradients + found.tried,
            exhausted=exhausted,
            seen=state.seen._replace(hypergrad_norm=length),
        )
        return Round(new, at.trials + count(failed), at.rounds + 1, settled, accepted)

    def _gradient(
        self, problem: Problem, batch: Batch, state: MAIDState, fresh, first
    ) -> tuple[MAIDState, Gradient]:
        """y to accuracy eps, v to accuracy delta, `z = ∇_x f − (∂²g/∂x∂y) v` and its error."""
        x, eps, delta = state.x, state.eps, state.delta
        key, now = jax.random.split(state.key)
        noise = trees.random_like(now, state.y)
        max_cg = min(self.max_cg, 10 * trees.size(state.y) + 100)

        sizes, taken = state.sizes, count(0)
        if self.mu is None:
            rounds = jnp.where(fresh, 6, jnp.where(first, 1, 0))
            sizes, taken = measured.smallest_eigenvalue(
                problem, x, state.y, batch.lower, sizes, noise, rounds=rounds, max_steps=max_cg
            )
        mu = sizes.mu / as_like(self.safety, eps) if self.mu is None else as_like(self.mu, eps)
        low = line_search.solve_lower(self, problem, x, state.y, batch, mu * eps)
        y = low.y
        f, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
        hessian = oracles.hessian(problem, x, y, RepeatedBatch(batch.lower))
        adjoint = conjugate(
            lambda v: trees.cast_like(hessian(trees.cast_like(v, y)), v),
            f_y,
            state.v if self.warm_adjoint else None,
            delta,
            max_cg,
        )
        v = trees.cast_like(adjoint.v, y)
        g_y, hvp, cross_v = oracles.lower_products(problem, x, y, v, batch.lower)
        z = trees.sub(f_x, cross_v)

        r, g_norm = norm_like(trees.sub(f_y, hvp), eps), norm_like(g_y, eps)
        e, d = jnp.maximum(eps, g_norm / mu), jnp.maximum(delta, r)
        sizes, cross, curvature, curvature_x, curvature_f = self._constants(
            problem, batch, x, y, v, e, sizes, noise, self._rounds(state.k, fresh, first)
        )
        # z − ∇l = [∇_x φ]_{y*}^{y} + (∂y*/∂x)ᵀ ∇_y φ(y*), and ∇_y φ(y) = f_y − H v.
        error_from_y, error_from_v = (curvature_x + cross / mu * curvature) * e, cross / mu * d
        if self.as_published:
            value, curvature = line_search.plain_value(self, f, f_y, e, curvature_f), curvature_f
        else:
            value = line_search.corrected_value(f, f_y, g_y, hvp, v, e, curvature)

        ulp = jnp.finfo(eps.dtype).eps
        limit = getattr(self.lower_solver, "max_steps", jnp.iinfo(jnp.int32).max)
        stuck_y = (low.residual > mu * eps) & (low.steps < limit)
        stuck_y = stuck_y | (eps < ulp / 4 * norm_like(y, eps))
        stuck_v = (r > 2 * delta) & (adjoint.steps < max_cg)
        seen = Seen(
            f.astype(eps.dtype), state.seen.hypergrad_norm, g_norm, error_from_y + error_from_v
        )
        state = state._replace(
            key=key,
            sizes=sizes,
            seen=seen,
            lower_steps=state.lower_steps + low.steps,
            cg_steps=state.cg_steps + taken + adjoint.steps,
            gradients=state.gradients + 1,
        )
        return state, Gradient(
            mu, y, v, z, value, curvature, error_from_y, error_from_v, stuck_y, stuck_v
        )

    def _rounds(self, k, fresh, first) -> Array:
        """Power steps on the three norms: a few at first, then on each in its turn.

        A round that sharpens an accuracy is at the same x, and measures nothing anew.
        """
        turn = jnp.arange(3, dtype=k.dtype) == k % 3
        return jnp.where(fresh, 6, jnp.where(first & turn, 2, 0))

    def _constants(
        self, problem: Problem, batch: Batch, x, y, v, e, sizes: CurvatureEstimates, noise, rounds
    ):
        """`CurvatureEstimates`, and the norms of ∂²g/∂x∂y, ∂²φ/∂y², ∂²φ/∂x∂y and ∂²f/∂y²."""
        at = problem, x, y
        safety, size = as_like(self.safety, e), norm_like(v, e)

        if self.cross is None:
            sizes = measured.cross_norm(*at, batch.lower, sizes, noise, rounds=rounds[0])
        cross = safety * sizes.cross if self.cross is None else as_like(self.cross, e)
        if self.cross_lipschitz is not None:
            cross = cross + as_like(self.cross_lipschitz, e) * e  # at y*(x)

        if self.upper_L is not None and self.hessian_lipschitz is not None:
            curvature = as_like(self.upper_L, e) + as_like(self.hessian_lipschitz, e) * size
        else:
            sizes = measured.curvature_norm(*at, v, batch, sizes, noise, rounds=rounds[1])
            curvature = safety * sizes.curvature

        if self.upper_cross is not None and self.cross_lipschitz is not None:
            curvature_x = as_like(self.upper_cross, e) + as_like(self.cross_lipschitz, e) * size
        else:
            sizes = measured.curvature_x_norm(*at, v, batch, sizes, noise, rounds=rounds[2])
            curvature_x = safety * sizes.curvature_x

        curvature_f = curvature
        if self.upper_L is not None:
            curvature_f = as_like(self.upper_L, e)
        elif self.as_published:  # φ is f where v is zero
            none = trees.zeros_like(v)
            alone = measured.curvature_norm(*at, none, batch, sizes, noise, rounds=15)
            curvature_f = safety * alone.curvature
        return sizes, cross, curvature, curvature_x, curvature_f
