"""One record that says how far (x, y) is from a solution, and how far that can be trusted."""

import enum
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bilevel import lower, oracles, trees
from bilevel.certificates import measures
from bilevel.certificates.kkt import curvatures, lower_kkt_residual
from bilevel.certificates.upper_kkt import can_fit, upper_kkt
from bilevel.linear import AbstractLinear
from bilevel.lower import AbstractLowerSolver, ToTolerance
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Scalar, ScalarLike, Upper


class Gap(enum.IntFlag):
    """Why a number of a certificate is NaN, or holds at another point than usual."""

    UPPER_COUPLED = 1
    LOWER_SET = 2
    LOWER_UNSOLVABLE = 4
    LOWER_STEP = 8
    AT_GIVEN_Y = 16
    LOWER_FLAT = 32
    LOWER_NONCONVEX = 64
    KINK = 128
    BRANCH = 256
    INFEASIBLE = 512


WORDS = {
    Gap.UPPER_COUPLED: "the upper set has no fixed projection, and too many constraints for its "
    "multipliers (or the problem's hypergradient or lower_step is declared), so stationarity is "
    "not measured",
    Gap.LOWER_SET: "y is constrained and too large for the implicit formula along an active set, "
    "and no closed form is declared, so stationarity is not measured",
    Gap.LOWER_UNSOLVABLE: "the lower set has no projection, so y*(x) is not solved for (a solver "
    "for constraints needs qpax, and a y of up to a few hundred entries)",
    Gap.LOWER_STEP: "the problem declares its own lower_step, so no loss says how good y is",
    Gap.AT_GIVEN_Y: "stationarity is the declared hypergradient's at the given y, whose distance "
    "from the lower solution is not known",
    Gap.LOWER_FLAT: "the lower loss is flat in some direction at the lower solution, so y*(x) may "
    "not be unique; stationarity is measured only where the upper loss is flat along it, too",
    Gap.LOWER_NONCONVEX: "the lower loss is not convex where the solve of y*(x) ended, which is no "
    "local minimum, so stationarity is not measured",
    Gap.KINK: "an inequality of the lower set is active without a force, so the hyper-objective "
    "may have a kink here; stationarity is that of one side; "
    "bl.certificates.goldstein(problem, x, y, batch, radius=1e-3) looks at both",
    Gap.BRANCH: "the lower loss is not convex at the given y, so the lower solution is a local "
    "one, and all is said of its branch alone",
    Gap.INFEASIBLE: "a constraint is violated at the given point, which is not feasible",
}
LOST = Gap.UPPER_COUPLED | Gap.LOWER_NONCONVEX  # stationarity is not measured
KINK_MARGIN = 1e-6


class Certificate(NamedTuple):
    """How far (x, y) is from a solution. All norms are Euclidean over the whole tree.

    A number the problem's structure leaves without meaning is NaN, and `gaps` says why.
    """

    # ‖x − P_X(x − a ∇l)‖/a at the solved y*, the norm of ∇l when x is free; where the upper set has
    # no fixed projection, the residual of the KKT conditions in x with the best multipliers
    stationarity: Scalar
    value: Scalar  # f(x, y*), at the y where stationarity was measured
    tracking_error: Scalar  # ‖y − y*‖ of the given y
    lower_residual: Scalar  # ‖∇_y g‖ at the given y, in projected form with a lower set
    kkt_residual: Scalar  # of the lower problem at the given y, with the best multipliers
    adjoint_residual: Scalar  # ‖H v − ∇_y f‖ of the given v at the given y, else of the solved v
    solved_lower_residual: Scalar  # how accurate y* is
    solved_adjoint_residual: Scalar  # how accurate its v is; NaN with a closed form
    sc_margin: Scalar  # min_i max(λ_i, −h_i) at y*: zero at a kink; infinite without inequalities
    lower_curvature: Scalar  # λ_min(∂²g/∂y²) at y*, along its face; NaN when y is large
    violation: Scalar  # the largest of a constraint on x or y, at the given point; 0 inside
    gaps: Int[Array, ""]  # a combination of `Gap`; 0 when nothing is missing

    @property
    def feasible(self) -> bool:
        """Whether the constraints hold to 1e-3 times `1 + max |x|, |y|`; not under jit."""
        return Gap.INFEASIBLE not in Gap(int(self.gaps))

    def summary(self) -> str:
        """What the numbers say, in a few sentences. Reads the values, so not under jit."""
        return " ".join(jax.device_get(self)._sentences())

    def __str__(self) -> str:
        return self.summary()

    def _sentences(self) -> list[str]:
        gaps = Gap(int(self.gaps))
        unsolved = bool(gaps & (Gap.LOWER_STEP | Gap.LOWER_UNSOLVABLE))
        measured = Gap.AT_GIVEN_Y in gaps or not (unsolved or Gap.LOWER_SET in gaps)
        measured &= not gaps & LOST
        measured &= math.isfinite(self.stationarity) or Gap.LOWER_FLAT not in gaps
        said = []
        if measured:
            said.append(
                f"Stationarity of x: {self.stationarity:.2e} (zero at a stationary point), with an "
                f"upper loss of {self.value:.6g}."
            )
        if not unsolved:
            residual = self.lower_residual
            residual = residual if math.isfinite(residual) else self.kkt_residual
            said.append(
                f"y is {self.tracking_error:.2e} from the lower solution (its residual is "
                f"{residual:.2e}, after an accurate solve {self.solved_lower_residual:.2e})."
            )
        elif math.isfinite(self.kkt_residual):
            said.append(f"The lower KKT conditions hold to {self.kkt_residual:.2e}.")
        if math.isfinite(self.adjoint_residual):
            said.append(f"The adjoint system holds to {self.adjoint_residual:.2e}.")
        if measured and math.isfinite(self.sc_margin):
            said.append(
                "Every lower inequality is clearly active or clearly inactive: its multiplier or "
                f"its slack is {self.sc_margin:.2e} at least."
            )
        if self.violation > 0 or not self.feasible:
            said.append(f"The largest violation of a constraint is {self.violation:.2e}.")
        said += [f"Not certified: {WORDS[gap]}." for gap in gaps]
        if measured and not unsolved:
            said += self._doubts()
        return said

    def _doubts(self) -> list[str]:
        """A residual that is not small beside the stationarity it is meant to support."""
        solves = {
            "lower": (self.solved_lower_residual, "solver=bl.lower.ToTolerance(max_steps=100_000)"),
            "adjoint": (self.solved_adjoint_residual, "linear=bl.linear.CG(1000)"),
        }
        if not all(map(math.isfinite, (self.stationarity, self.solved_lower_residual))):
            return [
                "Not to be trusted: some number is not finite; "
                "bl.certificates.probe(problem, x, y, batch) checks the losses."
            ]
        eps = float(jnp.finfo(self.stationarity.dtype).eps)
        enough = max(1e-2 * self.stationarity, 10 * math.sqrt(eps))
        return [
            f"Not to be trusted: the {level} solve stopped at a residual of {size:.2e}; "
            f"call bl.certificates.certify(problem, x, y, batch, {cure})."
            for level, (size, cure) in solves.items()
            if size > enough
        ]


def certify(
    problem: Problem,
    x: Upper,
    y: Lower,
    batch: Batch = Batch(),
    *,
    v: Lower | None = None,
    step_size: ScalarLike = 1.0,
    solver: AbstractLowerSolver | None = None,
    linear: AbstractLinear | None = None,
) -> Certificate:
    """Measure how far (x, y) is from a solution: stationarity, tracking, residuals.

    Solves the lower problem accurately from y, the adjoint system at the solution, and measures
    the hypergradient there. Where there is a lower set, that is the one through its active set,
    with the margin of strict complementarity beside it. Pure: jit it, or call it inside compiled
    code. The cost is that of the two solves, so at most `max_steps` lower steps and `steps` Hessian
    products, and a dense Hessian for a y of up to 200 entries.

    Args:
        batch: `Batch(upper, lower)`; hand it all data to certify the whole problem.
        v: an adjoint that tracks y, to be measured as well.
        step_size: a, of the projected-gradient residual.
        solver: for the lower problem; when absent `ToTolerance(max_steps=1000)`, or `SQP()` where
            the lower set has no simple projection.
        linear: for the adjoint system of a free y; `CG(100)` when absent.

    Returns:
        `Certificate`. NaN stands where there is no sound number: stationarity with more than 200
        constraints on y*(x), with a constrained y of more than 200 entries and no
        closed-form hypergradient, where the solve ended at no local minimum of the lower loss, or
        where that is flat and the upper loss is not; all lower measures with a `lower_step` or a
        lower set that nothing here solves for. With a `lower_step` and a closed form, stationarity
        is measured at the given y. Its `summary()` says all this in words.
    """
    gaps, nan = _gaps(problem, x, y, solver), measures.unknown(x, y)
    value = stationarity = tracking = solved_lower = solved_adjoint = curvature = nan
    margin = jnp.full_like(nan, jnp.inf)

    solved, duals, seen = y, None, None
    if measures.can_solve(problem, y, solver):
        if solver is None and measures.is_simple(problem):
            solver = ToTolerance(max_steps=1000)
        found = measures.solve(problem, x, y, batch.lower, solver)
        solved, solved_lower, duals = found.y, found.residual, measures.duals_of(found)
        tracking = trees.norm(trees.sub(y, solved))
        value = oracles.upper_value(problem, x, solved, batch.upper)
        if measures.is_small(y) and problem.hypergradient is None:
            duals = lower.duals_at(problem, x, solved, batch.lower) if duals is None else duals
            curvature, *seen = _curved(problem, x, y, solved, duals, batch)
    if measures.has_hypergradient(problem, y) and not gaps & Gap.LOWER_UNSOLVABLE:
        h = measures.hypergradient(problem, x, solved, batch, linear, duals)
        value = h.value
        solved_adjoint = nan if h.residual is None else h.residual
        margin = margin if h.sc_margin is None else h.sc_margin
        if _has_projection(problem):
            stationarity = measures.projected_gradient_residual(problem, x, h.grad, step_size)
        elif not gaps & Gap.UPPER_COUPLED:
            found = upper_kkt(problem, x, solved, batch, h.grad, linear=linear, duals=duals)
            stationarity = found.residual
            solved_adjoint = jnp.maximum(solved_adjoint, found.adjoint_residual)
    # A NaN upper loss has the adjoint v = 0, which would look stationary.
    stationarity = jnp.where(jnp.isfinite(value), stationarity, nan)
    adjoint = solved_adjoint
    if v is not None and measures.is_implicit(problem):
        adjoint = measures.adjoint_residual(problem, x, y, v, batch)

    gaps = jnp.asarray(gaps, jnp.int32)
    if seen is not None:
        flat, blind, nonconvex, branch = seen
        stationarity = jnp.where(nonconvex | (flat & blind), nan, stationarity)
        for gap, holds in (
            (Gap.LOWER_FLAT, flat),
            (Gap.LOWER_NONCONVEX, nonconvex),
            (Gap.KINK, margin < KINK_MARGIN),
            (Gap.BRANCH, branch & ~nonconvex),
        ):
            gaps = gaps | jnp.where(holds, gap, 0).astype(jnp.int32)

    residual = measures.lower_residual(problem, x, y, batch.lower)
    kkt = residual
    if problem.lower_step is None and not measures.is_implicit(problem):
        kkt = lower_kkt_residual(problem, x, y, None, batch.lower) if measures.is_small(y) else nan
    numbers = (stationarity, value, tracking, residual, kkt, adjoint, solved_lower)
    violation, feasible = measures.feasible(problem, x, y)
    gaps = gaps | jnp.where(feasible, 0, Gap.INFEASIBLE).astype(jnp.int32)
    numbers += (solved_adjoint, margin, curvature, violation)
    return Certificate(*(n.astype(nan.dtype) for n in numbers), gaps=gaps)


def _curved(problem: Problem, x: Upper, y: Lower, solved: Lower, duals, batch: Batch):
    """`λ_min` at the lower solution, and what it means for the hypergradient there.

    Returns:
        `λ_min`; whether it is zero to rounding; whether the upper loss sees the directions where it
        is; whether it is negative; whether the Hessian at the given y has a negative eigenvalue.
    """
    values, vectors = curvatures(problem, x, solved, duals, batch.lower)
    f_y, _ = trees.ravel(oracles.upper_grad_y(problem, x, solved, batch.upper))
    at_y = jnp.linalg.eigvalsh(oracles.dense_hessian(problem, x, y, batch.lower))
    eps = jnp.finfo(values.dtype).eps
    size = jnp.max(jnp.where(jnp.isfinite(values), jnp.abs(values), 0))
    rounding, doubt = 100 * eps * size, jnp.sqrt(eps) * size
    flat = (values[0] <= rounding) & (values[0] >= -doubt)
    unseen = jnp.where(jnp.abs(values) <= doubt, vectors.T @ f_y.astype(values.dtype), 0)
    blind = jnp.linalg.norm(unseen) > 1e-3 * jnp.linalg.norm(f_y).astype(values.dtype)
    branch = at_y[0] < -jnp.sqrt(eps) * jnp.max(jnp.abs(at_y))
    return values[0], flat, blind, values[0] < -doubt, branch


def _has_projection(problem: Problem) -> bool:
    """Whether x is projected on a set that stays where it is."""
    return problem.upper_set.projectable and not problem.upper_set.moves


def _gaps(problem: Problem, x: Upper, y: Lower, solver: AbstractLowerSolver | None) -> Gap:
    """The measures that the structure of the problem rules out; nothing is computed for it."""
    closed_form = problem.hypergradient is not None
    gaps = Gap(0)
    if not (_has_projection(problem) or can_fit(problem, x, y)):
        gaps |= Gap.UPPER_COUPLED
    if problem.lower_step is not None:
        gaps |= Gap.LOWER_STEP | (Gap.AT_GIVEN_Y if closed_form else Gap(0))
    elif not measures.can_solve(problem, y, solver):
        gaps |= Gap.LOWER_UNSOLVABLE
    elif not measures.has_hypergradient(problem, y):
        gaps |= Gap.LOWER_SET
    return gaps
