"""MAID: gradient descent with a line search that inexact values and gradients cannot fool.

Salehi, Mukherjee, Roberts, Ehrhardt. "An adaptively inexact first-order method for bilevel
optimization with application to hyperparameter learning". SIAM J. Math. Data Sci. 2025,
arXiv:2308.10098.
Differs from the paper: the error bound is derived anew, with ‖v‖ in the place of ‖∇_y f‖/μ;
constants are measured at the iterates, not known; x may have an upper set; and unless
`as_published`, values are corrected by the adjoint, a step is first tried at a length the last two
gradients tell, and accuracy is spent only where it is short.
"""

from typing import ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, ScalarLike

from bilevel import oracles, trees
from bilevel.linear.tolerance import conjugate
from bilevel.loops import sizes as measured
from bilevel.loops.sizes import Sizes
from bilevel.lower import AbstractLowerSolver, LowerSolution, NewtonCG
from bilevel.methods.base import AbstractMethod, Constants, Paper
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Same, Structure
from bilevel.sets import Free
from bilevel.typing import Lower, RandomKey, Scalar, Upper


class Seen(NamedTuple):
    """What the last certified gradient was made of; the info of a step."""

    upper: Scalar
    hypergrad_norm: Scalar
    lower_grad_norm: Scalar
    bound: Scalar  # on ‖z − ∇l‖


class MAIDState(NamedTuple):
    k: Scalar  # steps done
    x: Upper
    y: Lower  # within eps of y*(x)
    v: Lower  # adjoint
    z: Upper  # the inexact hypergradient x moved along last
    move: Upper  # the last move of x
    step_size: Scalar  # to be tried first
    eps: Scalar  # accuracy of y
    delta: Scalar  # accuracy of H v = ∇_y f
    sizes: Sizes
    key: RandomKey
    lower_steps: Int[Array, ""]  # taken so far
    cg_steps: Int[Array, ""]  # likewise
    exhausted: Bool[Array, ""]  # rounding allows no further step
    seen: Seen


class _Round(NamedTuple):
    """One step in the making: a gradient and a line search at the accuracy of the round."""

    state: MAIDState
    trials: Int[Array, ""]  # J
    rounds: Int[Array, ""]
    started: Bool[Array, ""]  # this step has its first step size
    accepted: Bool[Array, ""]


class _Gradient(NamedTuple):
    """A lower point, its adjoint, and what is certain about them."""

    mu: Scalar
    y: Lower
    v: Lower
    z: Upper  # ∇_x f − (∂²g/∂x∂y) v
    value: "_Value"
    bend: Scalar  # curvature in y: of f as published, else of φ = f − vᵀ∇_y g
    blame_y: Scalar  # the part of the bound on ‖z − ∇l‖ that is due to y
    blame_v: Scalar  # and to v
    stuck_y: Bool[Array, ""]  # rounding keeps y from its accuracy
    stuck_v: Bool[Array, ""]


class _Value(NamedTuple):
    """`l` is within `value − below` and `value + above`, up to rounding."""

    value: Scalar
    below: Scalar
    above: Scalar
    noise: Scalar  # rounding


class _Search(NamedTuple):
    """The line search of one round."""

    step_size: Scalar  # to be tried next; once found, the one accepted
    longest: Scalar  # step size that is not known to be too long
    x: Upper
    y: Lower
    move: Upper
    lower_steps: Int[Array, ""]
    failed: Int[Array, ""]  # trials
    tried: Int[Array, ""]
    found: Bool[Array, ""]
    blurred: Bool[Array, ""]  # a trial failed that a better accuracy may have saved


def _optional(value: ScalarLike | None) -> Array | None:
    return None if value is None else jnp.asarray(value)


def _number(default: float):
    return eqx.field(converter=jnp.asarray, default=default)


class MAID(AbstractMethod):
    """Deterministic descent without tuning: accuracies and step sizes are found on the way.

    A step solves the lower problem to `eps` and the adjoint system to `delta`, until the error of
    the hypergradient z is certified to be below `(1 − slack) ‖z‖`; then it looks for a step size
    at which l decreases for certain, by `decrease · a ‖z‖²` at least, and refines both accuracies
    where it finds none. Every accepted step decreases `l(x) = f(x, y*(x))`, and `∇l(x_k) → 0` for
    smooth f and g, g strongly convex in y. What is certain is so up to the constants: give those
    known; the others are measured at the iterates by power steps, and enlarged by `safety`.

    A step costs what it needs; `info` counts. It ends with `exhausted` = 1 where rounding leaves
    no step that is certain to decrease l (in double precision near `‖∇l‖ = 1e-7 √|l|`, in single
    near 1e-3); x then stays. Loops of unknown length inside: it jits, scans and maps, and cannot be
    differentiated in reverse mode. Meant for full batches: accuracy is of no use on samples.

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
    step_size: ScalarLike | None = eqx.field(converter=_optional, default=None)
    shrink: ScalarLike = _number(0.5)
    grow: ScalarLike = _number(10 / 9)
    sharpen: ScalarLike = _number(0.5)
    relax: ScalarLike = _number(1.25)
    slack: ScalarLike = _number(0.5)
    decrease: ScalarLike | None = eqx.field(converter=_optional, default=1e-4)
    trials: int = eqx.field(static=True, default=5)
    lower_solver: AbstractLowerSolver = eqx.field(default_factory=NewtonCG)
    warm_adjoint: bool = eqx.field(static=True, default=True)
    mu: ScalarLike | None = eqx.field(converter=_optional, default=None)
    cross: ScalarLike | None = eqx.field(converter=_optional, default=None)
    upper_L: ScalarLike | None = eqx.field(converter=_optional, default=None)
    upper_cross: ScalarLike | None = eqx.field(converter=_optional, default=None)
    hessian_lipschitz: ScalarLike | None = eqx.field(converter=_optional, default=None)
    cross_lipschitz: ScalarLike | None = eqx.field(converter=_optional, default=None)
    safety: ScalarLike = _number(1.5)
    convex_upper: bool = eqx.field(static=True, default=False)
    min_eps: ScalarLike = _number(0.0)
    as_published: bool = eqx.field(static=True, default=False)
    max_cg: int = eqx.field(static=True, default=2000)
    max_rounds: int = eqx.field(static=True, default=100)

    handles: ClassVar = frozenset({Structure.UPPER_SET})
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "3 x, 6 y"
    rate: ClassVar[str] = ""
    paper: ClassVar[Paper] = Paper(
        "Salehi, Mukherjee, Roberts, Ehrhardt",
        "An adaptively inexact first-order method for bilevel optimization with application to "
        "hyperparameter learning",
        "SIAM J. Math. Data Sci. 2025",
        "2308.10098",
    )

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

        Without the products of third order that measure curvature: six to twelve a step.
        """
        return Price(upper_grad=4, lower_grad=10, hvp=24, cross=10, cross_transposed=6)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> MAIDState:
        key, now = jax.random.split(jax.random.key(0) if key is None else key)
        x, dtype = trees.copy(x0), trees.widest((x0, y0))
        zero, none = jnp.zeros((), dtype), _count(0)
        state = MAIDState(
            k=none,
            x=problem.upper_set.project(x),
            y=trees.copy(y0),
            v=trees.zeros_like(y0),
            z=trees.zeros_like(x0),
            move=trees.zeros_like(x0),
            step_size=zero if self.step_size is None else _as(self.step_size, zero),
            eps=_as(self.eps, zero),
            delta=_as(self.delta, zero),
            sizes=measured.start(y0, now),
            key=key,
            lower_steps=none,
            cg_steps=none,
            exhausted=jnp.asarray(False),
            seen=Seen(zero, zero, zero, zero),
        )
        return trees.copy(state)

    def step(
        self, problem: Problem, state: MAIDState, batch: Batch
    ) -> tuple[MAIDState, dict[str, Scalar]]:
        def unfinished(at: _Round):
            return ~at.accepted & ~at.state.exhausted & (at.rounds < self.max_rounds)

        trials, none, no = jnp.asarray(self.trials, jnp.int32), _count(0), jnp.asarray(False)
        start = _Round(state, trials, none, started=no, accepted=no)
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

    def _round(self, problem: Problem, batch: Batch, at: _Round) -> _Round:
        """A gradient, and if it is certified to point uphill, a line search; else sharpen."""
        fresh = (at.state.k == 0) & (at.rounds == 0)
        state, h = self._gradient(problem, batch, at.state, fresh)
        a = jnp.where(at.started, state.step_size, self._first(state, h.z))
        _, _, length = self._moved(problem, state.x, h.z, a)
        allowed = (1 - _as(self.slack, a)) * length
        certified = h.blame_y + h.blame_v <= allowed

        found = self._search(problem, batch, state, h, a, at.trials, certified)
        accepted, failed = found.found, certified & ~found.found
        # What is short of accuracy: y, v or both.
        short_y = ~accepted & (failed | (h.blame_y >= allowed / 2))
        short_v = ~accepted & ~failed & (h.blame_v >= allowed / 2)
        exhausted = ~accepted & (
            (short_y & (h.stuck_y | (state.eps <= _as(self.min_eps, a))))
            | (short_v & h.stuck_v)
            | (failed & ~found.blurred)
            | ~jnp.isfinite(length)
        )
        if self.as_published:
            short_y = short_v = ~accepted
        sharpen, relax = _as(self.sharpen, a), _as(self.relax, a)

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
            step_size=jnp.where(accepted, _as(self.grow, a) * found.step_size, failing),
            eps=adapted(state.eps, short_y),
            delta=adapted(state.delta, short_v),
            lower_steps=state.lower_steps + found.lower_steps,
            exhausted=exhausted,
            seen=state.seen._replace(hypergrad_norm=length),
        )
        return _Round(new, at.trials + _count(failed), at.rounds + 1, settled, accepted)

    def _gradient(
        self, problem: Problem, batch: Batch, state: MAIDState, fresh
    ) -> tuple[MAIDState, _Gradient]:
        """y to accuracy eps, v to accuracy delta, `z = ∇_x f − (∂²g/∂x∂y) v` and its error."""
        x, eps, delta = state.x, state.eps, state.delta
        key, now, later = jax.random.split(state.key, 3)
        max_cg = min(self.max_cg, 10 * trees.size(state.y) + 100)

        sizes, taken = state.sizes, _count(0)
        if self.mu is None:
            rounds = jnp.where(fresh, 6, 1)
            sizes, taken = measured.smallest_eigenvalue(
                problem, x, state.y, batch.lower, sizes, now, rounds=rounds, max_steps=max_cg
            )
        mu = sizes.mu / _as(self.safety, eps) if self.mu is None else _as(self.mu, eps)
        low = self._lower(problem, x, state.y, batch, mu * eps)
        y = low.y
        f, f_x, f_y = oracles.upper_grads(problem, x, y, batch.upper)
        hessian = oracles.hessian(problem, x, y, Same(batch.lower))
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

        r, g_norm = _norm(trees.sub(f_y, hvp), eps), _norm(g_y, eps)
        e, d = jnp.maximum(eps, g_norm / mu), jnp.maximum(delta, r)
        sizes, cross, bend, bend_x, bend_f = self._constants(
            problem, batch, x, y, v, e, sizes, later, fresh
        )
        # z − ∇l = [∇_x φ]_{y*}^{y} + (∂y*/∂x)ᵀ ∇_y φ(y*), and ∇_y φ(y) = f_y − H v.
        blame_y, blame_v = (bend_x + cross / mu * bend) * e, cross / mu * d
        if self.as_published:
            value, bend = self._plain_value(f, f_y, e, bend_f), bend_f
        else:
            value = self._corrected_value(f, f_y, g_y, hvp, v, e, bend)

        ulp = jnp.finfo(eps.dtype).eps
        limit = getattr(self.lower_solver, "max_steps", jnp.iinfo(jnp.int32).max)
        stuck_y = (low.residual > mu * eps) & (low.steps < limit)
        stuck_y = stuck_y | (eps < ulp / 4 * _norm(y, eps))
        stuck_v = (r > 2 * delta) & (adjoint.steps < max_cg)
        seen = Seen(f.astype(eps.dtype), state.seen.hypergrad_norm, g_norm, blame_y + blame_v)
        state = state._replace(
            key=key,
            sizes=sizes,
            seen=seen,
            lower_steps=state.lower_steps + low.steps,
            cg_steps=state.cg_steps + taken + adjoint.steps,
        )
        return state, _Gradient(mu, y, v, z, value, bend, blame_y, blame_v, stuck_y, stuck_v)

    def _constants(self, problem: Problem, batch: Batch, x, y, v, e, sizes: Sizes, key, fresh):
        """Sizes, and `‖∂²g/∂x∂y‖, ‖∂²φ/∂y²‖, ‖∂²φ/∂x∂y‖, ‖∂²f/∂y²‖`, known or measured."""
        keys, at = jax.random.split(key, 4), (problem, x, y)
        rounds, safety, size = jnp.where(fresh, 15, 2), _as(self.safety, e), _norm(v, e)

        if self.cross is None:
            sizes = measured.cross_norm(*at, batch.lower, sizes, keys[0], rounds=rounds)
        cross = safety * sizes.cross if self.cross is None else _as(self.cross, e)
        if self.cross_lipschitz is not None:
            cross = cross + _as(self.cross_lipschitz, e) * e  # at y*(x)

        if self.upper_L is not None and self.hessian_lipschitz is not None:
            bend = _as(self.upper_L, e) + _as(self.hessian_lipschitz, e) * size
        else:
            sizes = measured.bend_norm(*at, v, batch, sizes, keys[1], rounds=rounds)
            bend = safety * sizes.bend

        if self.upper_cross is not None and self.cross_lipschitz is not None:
            bend_x = _as(self.upper_cross, e) + _as(self.cross_lipschitz, e) * size
        else:
            sizes = measured.bend_x_norm(*at, v, batch, sizes, keys[2], rounds=rounds)
            bend_x = safety * sizes.bend_x

        bend_f = bend
        if self.upper_L is not None:
            bend_f = _as(self.upper_L, e)
        elif self.as_published:  # φ is f where v is zero
            none = trees.zeros_like(v)
            alone = measured.bend_norm(*at, none, batch, sizes, keys[3], rounds=15)
            bend_f = safety * alone.bend
        return sizes, cross, bend, bend_x, bend_f

    def _plain_value(self, f, f_y, e, bend) -> _Value:
        """`l(x)` from f at a y within e of y*(x)."""
        slope, curved = _norm(f_y, e) * e, bend / 2 * e**2
        below = slope if self.convex_upper else slope + curved
        return _Value(f.astype(e.dtype), below, slope + curved, _rounding(f, e))

    def _corrected_value(self, f, f_y, g_y, hvp, v, e, bend) -> _Value:
        """`l(x)` from `φ = f − vᵀ∇_y g`, which is l at y*(x) and has `∇_y φ = f_y − H v`."""
        value = f.astype(e.dtype) - trees.dot(v, g_y).astype(e.dtype)
        gap = _norm(trees.sub(f_y, hvp), e) * e + bend / 2 * e**2
        return _Value(value, gap, gap, _rounding(f, e))

    def _search(
        self, problem: Problem, batch: Batch, state: MAIDState, h: _Gradient, a, trials, certified
    ) -> _Search:
        """Step sizes `a, shrink · a, ...` until l decreases for certain."""
        here = h.value
        decrease = self.slack**2 if self.decrease is None else self.decrease

        def body(at: _Search) -> _Search:
            a = at.step_size
            x, move, length = self._moved(problem, state.x, h.z, a)
            low = self._lower(problem, x, h.y, batch, h.mu * state.eps)
            y, e = low.y, jnp.maximum(state.eps, low.residual / h.mu)
            f, _, f_y = oracles.upper_grads(problem, x, y, batch.upper)
            if self.as_published:
                there = self._plain_value(f, f_y, e, h.bend)
            else:
                g_y, hvp, _ = oracles.lower_products(problem, x, y, h.v, batch.lower)
                there = self._corrected_value(f, f_y, g_y, hvp, h.v, e, h.bend)

            change = there.value - here.value
            noise, wanted = there.noise + here.noise, _as(decrease, a) * a * length**2
            found = (change + there.above + here.below + noise <= -wanted) & (wanted > 0)
            # Too long at any accuracy; a change that is not a number, too.
            hopeless = ~(change - there.below - here.above <= noise - wanted)
            hopeless = jnp.asarray(False) if self.as_published else hopeless
            shorter = _as(self.shrink, a) * a
            return _Search(
                step_size=jnp.where(found, a, shorter),
                longest=jnp.where(hopeless, shorter, at.longest),
                x=x,
                y=y,
                move=move,
                lower_steps=at.lower_steps + low.steps,
                failed=at.failed + _count(~found & ~hopeless),
                tried=at.tried + 1,
                found=found,
                blurred=at.blurred | (~hopeless & (there.above + here.below > noise)),
            )

        def unfinished(at: _Search):
            return certified & ~at.found & (at.failed < trials) & (at.tried < 200)

        no, none = jnp.asarray(False), _count(0)
        start = _Search(a, a, state.x, h.y, trees.zeros_like(state.x), none, none, none, no, no)
        return jax.lax.while_loop(unfinished, body, start)

    def _first(self, state: MAIDState, z: Upper) -> Scalar:
        """The step size to try first: the last one, or the one the last two gradients tell."""
        last, size = state.step_size, _norm(z, state.step_size)
        careful = (1 + _norm(state.x, last)) / (10 * jnp.where(size > 0, size, 1))
        last = jnp.where(last > 0, last, careful)
        if self.as_published:
            return last
        # The short one of Barzilai and Borwein: the long one fails more trials than it saves steps.
        change = trees.sub(z, state.z)
        bend, square = trees.dot(state.move, change), trees.dot(change, change)
        told = (bend > 0) & (square > 0)
        secant = (bend / jnp.where(told, square, 1)).astype(last.dtype)
        return jnp.where(told, jnp.clip(secant, last / 10, 10 * last), last)

    def _moved(self, problem: Problem, x: Upper, z: Upper, a) -> tuple[Upper, Upper, Scalar]:
        """`x⁺ = P(x − a z)`, `x⁺ − x`, and `‖x⁺ − x‖/a`."""
        new = trees.axpy(-a, z, x)
        if isinstance(problem.upper_set, Free):
            return new, trees.sub(new, x), _norm(z, a)
        new = problem.upper_set.project(new)
        move = trees.sub(new, x)
        return new, move, _norm(move, a) / a

    def _lower(self, problem: Problem, x: Upper, y: Lower, batch: Batch, tol) -> LowerSolution:
        solver = eqx.tree_at(lambda s: s.tol, self.lower_solver, tol)
        low = solver.solve(problem, x, y, batch.lower)
        return low._replace(residual=low.residual.astype(tol.dtype), steps=_count(low.steps))


def _norm(tree, like: Scalar) -> Scalar:
    return trees.norm(tree).astype(like.dtype)


def _rounding(f: Scalar, like: Scalar) -> Scalar:
    return 4 * jnp.finfo(like.dtype).eps * jnp.abs(f.astype(like.dtype))


def _as(value, like: Scalar) -> Scalar:
    return jnp.asarray(value, like.dtype)


def _count(value) -> Int[Array, ""]:
    return jnp.asarray(value, jnp.int32)
