"""Is this the gradient of `x → f(x, y*(x))`? Ask differences of the function itself."""

import enum
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bilevel import oracles, sets, trees
from bilevel.certificates import measures
from bilevel.linear import CG
from bilevel.lower import AbstractLowerSolver, ToTolerance
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Scalar, Upper

AXES_UP_TO = 12  # entries of x for which every coordinate is differenced
RANDOM_DIRECTIONS = 6  # directions for a larger x


class Verdict(enum.Enum):
    """What a comparison with differences came to."""

    AGREES = "agrees"
    DIFFERS = "differs"
    UNDECIDED = "undecided"


class HypergradientCheck(NamedTuple):
    """Slopes of `x → f(x, y*(x))` along some directions, claimed and measured."""

    verdict: Verdict  # agrees, differs, or cannot be told
    sentence: str  # the same in words, with the numbers
    error: float  # relative, over all directions
    uncertainty: float  # of the differences, on the same scale
    estimate: Float[np.ndarray, " k"]  # slopes of the estimate along k unit directions
    differences: Float[np.ndarray, " k"]  # slopes by central differences
    step: float  # difference step
    lower_residual: float  # ‖∇_y g‖ at the lower solution the estimate was given

    def __str__(self) -> str:
        return self.sentence


def check_hypergradient(
    problem: Problem,
    x: Upper,
    y0: Lower,
    batch: Batch = Batch(),
    *,
    estimate: Upper | Callable | None = None,
    directions: int | None = None,
    key=None,
    step: float | None = None,
    tol: float = 1e-3,
    solver: AbstractLowerSolver | None = None,
) -> HypergradientCheck:
    """Compare a hypergradient with differences of `x → f(x, y*(x))`.

    Central differences at two steps, extrapolated: their error falls like `step⁴`, and grows like
    `eps/step` by rounding. What the two steps disagree by, a kink at x, rounding and an unfinished
    lower solve are counted as uncertainty, and a difference within it is left undecided. Takes
    four lower solves a direction. Runs on the host, not under jit.

    Args:
        y0: where the first lower solve starts; the others start at its solution.
        estimate: a tree shaped like x, or `fn(problem, x, y_star, batch) -> HyperGrad`. When
            absent, the closed form the problem declares, else `hypergrad.implicit` with as many
            CG steps as it may need (at most 500).
        directions: how many random directions; when absent, the coordinate axes of an x with up
            to 12 entries, else 6 random directions.
        key: draws the directions; `jax.random.key(0)` when absent.
        step: of the differences, in units of x; when absent `eps^(1/4)` of the coarsest dtype,
            times the root mean square of x where that exceeds 1.
        tol: relative error that still agrees.
        solver: for the lower problem; `ToTolerance` at the accuracy of the dtype when absent.

    Returns:
        `HypergradientCheck`; printing it gives the verdict in a sentence, with what to check.

    Raises:
        ValueError: the estimate is not shaped like x, or the lower problem cannot be solved by
            gradients (it declares a `lower_step`, or its set has no projection).
    """
    if not measures.is_solvable(problem):
        raise ValueError(
            "check_hypergradient solves the lower problem by gradient steps, which a lower_step "
            "or a lower_set without a projection rules out; check a problem without them."
        )
    x, y0 = trees.copy(x), trees.copy(y0)
    eps = _eps(x, y0)
    solver = ToTolerance(tol=10 * eps) if solver is None else solver
    step = _step(x, eps) if step is None else float(step)

    base = _solve(problem, x, y0, batch, solver)
    grad = _estimated(problem, x, base.y, batch, estimate)
    f_x = eqx.filter_jit(oracles.upper_grads)(problem, x, base.y, batch.upper)[1]

    rays = _rays(x, directions, key)
    claimed = np.asarray([float(trees.dot(grad, ray)) for ray in rays])
    direct = np.asarray([float(trees.dot(f_x, ray)) for ray in rays])
    slopes = [_slope(problem, x, base, ray, batch, solver, step, eps) for ray in rays]
    measured, doubt, kink, unsolved = (np.asarray(column) for column in zip(*slopes, strict=True))
    # What y* carries of the slope, as measured or, where y could not follow x, as claimed; and how
    # much of it a residual cut to this fraction leaves out; ten times that, because the slowest
    # part of y decays last.
    carried = np.abs(measured - direct)
    if not float(base.residual) <= 1000 * eps * (1 + float(trees.norm(base.y))):
        carried = np.maximum(carried, np.abs(claimed - direct))
    unsolved = 10 * unsolved / np.maximum(1 - unsolved, 0.01) * carried
    evidence = _Evidence(
        claimed=claimed,
        measured=measured,
        direct=direct,
        doubt=_norm(doubt),
        kink=_norm(kink),
        unsolved=_norm(unsolved),
        step=step,
        eps=eps,
        residual=float(base.residual),
        free=isinstance(problem.lower_set, sets.Free),
        dtype=_dtype_name(x, y0),
    )
    verdict, sentence = _judge(evidence, tol)
    return HypergradientCheck(
        verdict=verdict,
        sentence=sentence,
        error=evidence.error(),
        uncertainty=evidence.uncertainty(),
        estimate=claimed,
        differences=measured,
        step=step,
        lower_residual=float(base.residual),
    )


# --- values of x → f(x, y*(x)) -------------------------------------------------------------


class _Solved(NamedTuple):
    y: Lower
    value: Scalar
    residual: Scalar
    first_residual: Scalar  # where the solver started


@eqx.filter_jit
def _solve(problem, x, y0, batch, solver) -> _Solved:
    first = measures.lower_residual(problem, x, y0, batch.lower)
    y, last, *_ = solver.solve(problem, x, y0, batch.lower)
    return _Solved(y, oracles.upper_value(problem, x, y, batch.upper), last, first)


def _slope(problem, x, base, ray, batch, solver, step, eps) -> tuple[float, float, float, float]:
    """The slope along a ray, its uncertainty, the kink at x, and how unsolved y* was left."""

    def at(length):
        return _solve(problem, trees.axpy(length, ray, x), base.y, batch, solver)

    ends = {k: at(k * step) for k in (-2, -1, 1, 2)}
    value = {k: float(end.value) for k, end in ends.items()} | {0: float(base.value)}
    near = (value[1] - value[-1]) / (2 * step)
    far = (value[2] - value[-2]) / (4 * step)
    curvature = {k: (value[k] - 2 * value[0] + value[-k]) / (k * step) for k in (1, 2)}
    # Of order step³ where the function is smooth; the jump of its slope where it is not.
    kink = abs(2 * curvature[1] - curvature[2])
    rounding = 2 * eps * max(map(abs, value.values())) / step
    unsolved = max(float(end.residual) for end in ends.values()) / max(
        max(float(end.first_residual) for end in ends.values()), 1e-300
    )
    return (4 * near - far) / 3, abs(near - far) / 3 + rounding, kink, min(unsolved, 1.0)


def _estimated(problem, x, y, batch, estimate) -> Upper:
    if estimate is None:
        linear = CG(min(2 * trees.size(y) + 10, 500))
        estimate = functools.partial(measures.hypergradient, linear=linear)
    grad = estimate
    if callable(estimate):
        found = eqx.filter_jit(estimate)(problem, x, y, batch)
        grad = getattr(found, "grad", found)
    if jax.tree.map(jnp.shape, grad) != jax.tree.map(jnp.shape, x):
        raise ValueError(
            "check_hypergradient: the estimate is not shaped like x. Give a tree like x, or a "
            "function of (problem, x, y, batch) that returns a HyperGrad."
        )
    return grad


def _step(x: Upper, eps: float) -> float:
    rms = float(trees.norm(x)) / math.sqrt(trees.size(x))
    return eps**0.25 * max(1.0, rms if math.isfinite(rms) else 1.0)


def _rays(x: Upper, directions: int | None, key) -> list[Upper]:
    """Unit directions in the space of x."""
    if directions is None and trees.size(x) <= AXES_UP_TO:
        return _axes(x)
    key = jax.random.key(0) if key is None else key
    keys = jax.random.split(key, RANDOM_DIRECTIONS if directions is None else directions)
    draws = [trees.random_like(k, x) for k in keys]
    return [trees.scale(1 / trees.norm(draw), draw) for draw in draws]


def _axes(x: Upper) -> list[Upper]:
    leaves, treedef = jax.tree.flatten(x)
    zeros = [np.zeros(leaf.shape) for leaf in leaves]
    axes = []
    for i, leaf in enumerate(leaves):
        for entry in range(leaf.size):
            unit = np.zeros(leaf.size)
            unit[entry] = 1.0
            ray = [*zeros[:i], unit.reshape(leaf.shape), *zeros[i + 1 :]]
            axes.append(trees.cast_like(jax.tree.unflatten(treedef, ray), x))
    return axes


# --- the verdict ---------------------------------------------------------------------------


class _Evidence(NamedTuple):
    claimed: np.ndarray
    measured: np.ndarray
    direct: np.ndarray  # slopes of f in x alone
    doubt: float  # disagreement of the two steps, and rounding
    kink: float
    unsolved: float  # error that an unfinished lower solve may have left
    step: float
    eps: float
    residual: float
    free: bool  # no lower set
    dtype: str

    def scale(self) -> float:
        return max(_norm(self.measured), _norm(self.claimed), 1e-300)

    def relative(self, error) -> float:
        return _norm(error) / self.scale()

    def error(self) -> float:
        return self.relative(self.claimed - self.measured)

    def uncertainty(self) -> float:
        return (self.doubt + self.kink / 2 + self.unsolved) / self.scale()


def _judge(e: _Evidence, tol: float) -> tuple[Verdict, str]:
    if not np.isfinite([*e.measured, e.doubt, e.kink, e.unsolved]).all():
        return Verdict.UNDECIDED, (
            "Cannot decide: the upper loss at the lower solution is not finite near x, or the "
            "lower solve diverged; probe() says which loss it is."
        )
    if not np.isfinite(e.claimed).all():
        return Verdict.DIFFERS, "Differs: the estimate holds a number that is not finite."
    error, uncertainty = e.error(), e.uncertainty()
    if error <= tol:
        return Verdict.AGREES, (
            f"Agrees with differences of f(x, y*(x)) to a relative error of {error:.1e} over "
            f"{len(e.measured)} directions."
        )
    if error > tol + 3 * uncertainty:
        return Verdict.DIFFERS, (
            f"Differs from differences of f(x, y*(x)) by a relative error of {error:.1e}, where "
            f"these are good to {uncertainty:.1e}: {_cause(e, tol + 3 * uncertainty)}"
        )
    return Verdict.UNDECIDED, (
        f"Cannot decide: the relative error is {error:.1e}, but the differences are good only to "
        f"{uncertainty:.1e}: {_obstacle(e)}"
    )


def _cause(e: _Evidence, margin: float) -> str:
    """The commonest mistakes, each recognised by what it would have given."""
    factor = float(e.claimed @ e.measured / max(e.measured @ e.measured, 1e-300))
    if e.relative(e.claimed + e.measured) <= margin:
        return "it has the opposite sign."
    if e.relative(e.claimed - e.direct) <= margin:
        return "it is ∇_x f alone; the implicit term −(∂²g/∂x∂y) H⁻¹ ∇_y f is missing."
    if e.relative(e.claimed - (2 * e.direct - e.measured)) <= margin:
        return "its implicit term has the opposite sign; it is −(∂²g/∂x∂y) H⁻¹ ∇_y f."
    if abs(factor) > margin and _norm(e.claimed - factor * e.measured) <= margin * e.scale():
        return f"it is {factor:.4g} times what it should be."
    if not e.free:
        return "lower constraints that are active at y* change the formula of a free y."
    return (
        "check that it was made at this x and batch, that its linear solve has enough steps "
        f"(HyperGrad.residual), and that y was solved as well as here (residual {e.residual:.1e})."
    )


def _obstacle(e: _Evidence) -> str:
    if 3 * e.unsolved >= _norm(e.claimed - e.measured):  # explains the difference by itself
        return (
            "the lower solves stopped too early; give "
            "solver=bl.lower.ToTolerance(tol=1e-10, max_steps=100_000)."
        )
    if e.eps > 1e-10:
        return f"{e.dtype} is too coarse; enable jax_enable_x64 and pass x, y0 and data in float64."
    if e.kink / 2 > e.doubt:
        return "f(x, y*(x)) has a kink near x (a non-smooth loss, or a constraint that switches)."
    return (
        f"rounding or strong curvature within the step of {e.step:.1e}; try another step, or an "
        "x where the gradient is larger."
    )


def _norm(vector) -> float:
    return float(np.linalg.norm(vector))


def _eps(*values) -> float:
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(values))


def _dtype_name(*values) -> str:
    return max(
        jax.tree.leaves(values), key=lambda leaf: float(jnp.finfo(leaf.dtype).eps)
    ).dtype.name
