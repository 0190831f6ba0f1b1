"""One record that says how far (x, y) is from a solution, and how far that can be trusted."""

import enum
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bilevel import oracles, trees
from bilevel.certificates import measures
from bilevel.linear import AbstractLinear
from bilevel.lower import AbstractLowerSolver, ToTolerance
from bilevel.problem import Batch, Problem, Structure
from bilevel.typing import Lower, Scalar, ScalarLike, Upper


class Gap(enum.IntFlag):
    """Why a number of a certificate is NaN, or holds at another point than usual."""

    UPPER_COUPLED = 1
    LOWER_SET = 2
    LOWER_UNSOLVABLE = 4
    LOWER_STEP = 8
    AT_GIVEN_Y = 16


WORDS = {
    Gap.UPPER_COUPLED: "the upper set has no fixed projection, so stationarity is not measured",
    Gap.LOWER_SET: "y is constrained, where the implicit formula does not hold, and no closed "
    "form is declared, so stationarity is not measured",
    Gap.LOWER_UNSOLVABLE: "the lower set has no projection, so y*(x) is not solved for",
    Gap.LOWER_STEP: "the problem declares its own lower_step, so no loss says how good y is",
    Gap.AT_GIVEN_Y: "stationarity is the declared hypergradient's at the given y, whose distance "
    "from the lower solution is not known",
}


class Certificate(NamedTuple):
    """How far (x, y) is from a solution. All norms are Euclidean over the whole tree.

    A number the problem's structure leaves without meaning is NaN, and `gaps` says why.
    """

    stationarity: Scalar  # ‖x − P_X(x − a ∇l)‖/a at the solved y*; the norm of ∇l when x is free
    value: Scalar  # f(x, y*), at the y where stationarity was measured
    tracking_error: Scalar  # ‖y − y*‖ of the given y
    lower_residual: Scalar  # ‖∇_y g‖ at the given y, in projected form with a lower set
    adjoint_residual: Scalar  # ‖H v − ∇_y f‖ of the given v at the given y, else of the solved v
    solved_lower_residual: Scalar  # how accurate y* is
    solved_adjoint_residual: Scalar  # how accurate its v is; NaN with a closed form
    gaps: Int[Array, ""]  # a combination of `Gap`; 0 when nothing is missing

    def summary(self) -> str:
        """What the numbers say, in a few sentences. Reads the values, so not under jit."""
        return " ".join(jax.device_get(self)._sentences())

    def __str__(self) -> str:
        return self.summary()

    def _sentences(self) -> list[str]:
        gaps = Gap(int(self.gaps))
        unsolved = bool(gaps & (Gap.LOWER_STEP | Gap.LOWER_UNSOLVABLE))
        measured = Gap.AT_GIVEN_Y in gaps or not (unsolved or Gap.LOWER_SET in gaps)
        measured &= Gap.UPPER_COUPLED not in gaps
        said = []
        if measured:
            said.append(
                f"Stationarity of x: {self.stationarity:.2e} (zero at a stationary point), with an "
                f"upper loss of {self.value:.6g}."
            )
        if not unsolved:
            said.append(
                f"y is {self.tracking_error:.2e} from the lower solution (its residual is "
                f"{self.lower_residual:.2e}, after an accurate solve "
                f"{self.solved_lower_residual:.2e})."
            )
        if math.isfinite(self.adjoint_residual):
            said.append(f"The adjoint system holds to {self.adjoint_residual:.2e}.")
        said += [f"Not certified: {WORDS[gap]}." for gap in gaps]
        if measured and not unsolved:
            said += self._doubts()
        return said

    def _doubts(self) -> list[str]:
        """A residual that is not small beside the stationarity it is meant to support."""
        solves = {
            "lower": (self.solved_lower_residual, "a solver with more max_steps"),
            "adjoint": (self.solved_adjoint_residual, "a linear solver with more steps"),
        }
        if not all(map(math.isfinite, (self.stationarity, self.solved_lower_residual))):
            return ["Not to be trusted: some number is not finite; check the losses with probe()."]
        eps = float(jnp.finfo(self.stationarity.dtype).eps)
        enough = max(1e-2 * self.stationarity, 10 * math.sqrt(eps))
        return [
            f"Not to be trusted: the {level} solve stopped at a residual of {size:.2e}; "
            f"give {cure}."
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
    the hypergradient there. Pure: jit it, or call it inside compiled code. The cost is that of
    the two solves, so at most `max_steps` lower steps and `steps` Hessian products.

    Args:
        batch: `Batch(upper, lower)`; hand it all data to certify the whole problem.
        v: an adjoint that tracks y, to be measured as well.
        step_size: a, of the projected-gradient residual.
        solver: for the lower problem; `ToTolerance(max_steps=1000)` when absent.
        linear: for the adjoint system; `CG(100)` when absent.

    Returns:
        `Certificate`. NaN stands where there is no sound number: stationarity with a `lower_set`
        and no closed-form hypergradient, or with an upper set that has no fixed projection; all
        lower measures with a `lower_step` or a lower set without a projection. With a
        `lower_step` and a closed form, stationarity is measured at the given y. Its `summary()`
        says all this in words.
    """
    solver = ToTolerance(max_steps=1000) if solver is None else solver
    gaps, nan = _gaps(problem), measures.unknown(x, y)
    value = stationarity = tracking = solved_lower = solved_adjoint = nan

    solved = y
    if measures.is_solvable(problem):
        solved, solved_lower, _ = solver.solve(problem, x, y, batch.lower)
        tracking = trees.norm(trees.sub(y, solved))
        value = oracles.upper_value(problem, x, solved, batch.upper)
    if measures.has_hypergradient(problem) and not gaps & Gap.LOWER_UNSOLVABLE:
        found = measures.hypergradient(problem, x, solved, batch, linear)
        value = found.value
        solved_adjoint = nan if found.residual is None else found.residual
        if not gaps & Gap.UPPER_COUPLED:
            stationarity = measures.projected_gradient_residual(problem, x, found.grad, step_size)
    # A NaN upper loss has the adjoint v = 0, which would look stationary.
    stationarity = jnp.where(jnp.isfinite(value), stationarity, nan)
    adjoint = solved_adjoint
    if v is not None and measures.is_implicit(problem):
        adjoint = measures.adjoint_residual(problem, x, y, v, batch)

    lower = measures.lower_residual(problem, x, y, batch.lower)
    numbers = (stationarity, value, tracking, lower, adjoint, solved_lower, solved_adjoint)
    return Certificate(*(n.astype(nan.dtype) for n in numbers), gaps=jnp.asarray(gaps, jnp.int32))


def _gaps(problem: Problem) -> Gap:
    closed_form = problem.hypergradient is not None
    gaps = Gap(0)
    if any(Structure.UPPER_COUPLED in kinds for kinds, _ in problem.structure()):
        gaps |= Gap.UPPER_COUPLED
    if problem.lower_step is not None:
        gaps |= Gap.LOWER_STEP | (Gap.AT_GIVEN_Y if closed_form else Gap(0))
    elif not problem.lower_set.projectable:
        gaps |= Gap.LOWER_UNSOLVABLE
    elif not closed_form and not measures.is_implicit(problem):
        gaps |= Gap.LOWER_SET
    return gaps
