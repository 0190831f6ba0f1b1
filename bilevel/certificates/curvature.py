"""A look at a problem before it is solved: what depends on what, how it is curved, which steps."""

import enum
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel import effort, oracles, trees
from bilevel.certificates import spectrum
from bilevel.linear import CG
from bilevel.problem import Batch, Problem, RepeatedBatch
from bilevel.typing import Lower, Upper

_UNKNOWN = (math.nan, math.nan)
CG_TOL = 1e-6  # relative error of the adjoint that `cg_steps` refers to


class Convexity(enum.Enum):
    """What the lower Hessian looks like at one point."""

    STRONGLY_CONVEX = "strongly convex"
    CONVEX = "convex, with flat directions"
    NONCONVEX = "nonconvex"
    UNKNOWN = "unknown"


class Probe(NamedTuple):
    """What a problem looks like at (x, y). NaN stands where a number makes no sense.

    Constants hold at this point only: they bound nothing elsewhere unless the lower loss is
    quadratic.
    """

    upper: float  # f
    lower: float  # g
    convexity: Convexity  # of g in y, as far as the eigenvalues tell
    L: float  # largest eigenvalue of ∂²g/∂y²
    mu: float  # smallest one
    condition: float  # κ = L/μ
    upper_L: float  # largest |eigenvalue| of ∂²f/∂y²
    cross: float  # ‖∂²g/∂x∂y‖; y* moves at most cross/μ times as far as x
    hyper_L: float  # largest |eigenvalue| of the Hessian of f(x, y*(x)), as explained in `probe`
    hyper_mu: float  # smallest eigenvalue of the same
    y_step: float  # 2/(L + μ) when strongly convex, else 1/L: gradient steps on y
    neumann_step: float  # 1/L: also FixedPoint
    cg_steps: float  # for a relative error of the adjoint of 1e-6
    penalty: float  # 2 upper_L/μ: the least penalty of value-function methods such as F2SA
    findings: tuple[str, ...]  # what looks wrong, a sentence each; empty when all is well

    @property
    def ok(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        rows = (
            ("upper loss", f"{self.upper:.6g}", ""),
            ("lower loss", f"{self.lower:.6g}", f"{self.convexity.value} in y here"),
            ("L, μ", f"{self.L:.3g}, {self.mu:.3g}", f"condition number {self.condition:.3g}"),
            ("upper curvature in y", f"{self.upper_L:.3g}", "largest |eigenvalue|"),
            ("cross derivative", f"{self.cross:.3g}", "operator norm"),
            ("hyper L, μ", f"{self.hyper_L:.3g}, {self.hyper_mu:.3g}", "of f(x, y*(x)), as if g"),
            ("", "", "were quadratic; x steps of at most 1/L"),
            ("y step", f"{self.y_step:.3g}", "at most, for a gradient step"),
            ("Neumann step", f"{self.neumann_step:.3g}", "at most"),
            ("CG steps", f"{self.cg_steps:.0f}", f"for a relative error of {CG_TOL:.0e}"),
            ("penalty", f"{self.penalty:.3g}", "at least, for value-function methods"),
        )
        table = [f"{name:<21} {number:>18}  {note}".rstrip() for name, number, note in rows]
        return "\n".join([*table, *(f"! {finding}" for finding in self.findings)])


def probe(problem: Problem, x: Upper, y: Lower, batch: Batch = Batch(), *, key=None) -> Probe:
    """Check that both losses make sense at (x, y), and measure curvature there.

    Says whether a loss is not finite or does not depend on what it should (by its derivatives
    here and at a point nearby), and estimates the eigenvalues of `∂²g/∂y²` (dense with up to 200
    entries of y, else Lanczos), with the step sizes that follow. The curvature of the
    hyper-objective is that of `f(x, y + J (u − x))` in u with `J = −(∂²g/∂y²)⁻¹ ∂²g/∂y∂x`, which
    leaves out third derivatives of g: exact at y*(x) for a quadratic g. Constraints are not
    looked at.
    Runs on the host, not under jit; a large y takes a few hundred Hessian products.

    Args:
        batch: `Batch(upper, lower)`; a sample's curvature is not that of all data.
        key: starts Lanczos and draws the nearby point; `jax.random.key(0)` when absent. The same
            key gives the same numbers.

    Returns:
        `Probe`, whose fields are Python floats; printing it gives a table.

    Raises:
        ValueError: a loss does not return a scalar.
    """
    x, y = trees.copy(x), trees.copy(y)
    _check_scalar("upper", problem.upper, x, y, batch.upper)
    _check_scalar("lower", problem.lower, x, y, batch.lower)
    key = jax.random.key(0) if key is None else key
    values, here, near, (k_lower, k_upper, k_cross, k_hyper) = _look(problem, x, y, batch, key)
    f, g = map(float, values)
    findings = _dependence({"upper": f, "lower": g}, _as_floats(here), _as_floats(near))

    mirrored = Problem(problem.lower, problem.upper)  # so that ∂²f/∂y² is the Hessian of "lower"
    mu, L, resolved = spectrum.extremes(lambda v: _hvp(problem, x, y, v, batch.lower), y, k_lower)
    upper_L = spectrum.largest_magnitude(lambda v: _hvp(mirrored, x, y, v, batch.upper), y, k_upper)
    square = spectrum.largest_magnitude(
        lambda u: _cross_square(problem, x, y, u, batch.lower), x, k_cross
    )
    convexity = _convexity(mu, L, resolved, float(jnp.finfo(trees.widest(y)).eps))
    strong = convexity is Convexity.STRONGLY_CONVEX
    hyper_mu, hyper_L = hyper_curvature(problem, x, y, batch, k_hyper) if strong else _UNKNOWN
    findings += _curved(convexity, mu, L, resolved)
    return Probe(
        upper=f,
        lower=g,
        convexity=convexity,
        L=L,
        mu=mu,
        condition=L / mu if strong else math.nan,
        upper_L=upper_L,
        cross=math.sqrt(max(square, 0.0)) if math.isfinite(square) else math.nan,
        hyper_L=hyper_L,
        hyper_mu=hyper_mu,
        y_step=2 / (L + mu) if strong else _inverse(L, mu),
        neumann_step=_inverse(L, mu),
        cg_steps=_cg_steps(L / mu, trees.size(y)) if strong else math.nan,
        penalty=2 * upper_L / mu if strong else math.nan,
        findings=tuple(findings),
    )


# --- what depends on what ------------------------------------------------------------------


def _dependence(values: dict[str, float], here: dict, near: dict) -> list[str]:
    """What is not finite, and derivatives that vanish here and nearby."""
    broken = [
        f"Problem.{name} is {value} at this x and y; it must be finite. Look for the logarithm or "
        "root of something not positive, an overflow, or NaN in the batch."
        for name, value in values.items()
        if not math.isfinite(value)
    ]
    if broken:
        return broken
    found = [
        f"Problem.{loss} has a gradient in {by} that is not finite, though its value is."
        for (loss, by), size in here.items()
        if by in ("x", "y") and not math.isfinite(size)
    ]
    absent = {name for name in here if here[name] == 0 and near[name] == 0}
    if ("lower", "y") in absent:
        found.append(
            "Problem.lower does not depend on y, so y*(x) is not defined. Is its loss built from "
            "its second argument?"
        )
    elif ("lower", "x") in absent:
        found.append("Problem.lower does not depend on x, so y*(x) is the same for every x.")
    elif ("lower", "x, y") in absent:
        found.append(
            "Problem.lower depends on x and on y but does not couple them (its cross derivative "
            "is zero), so y*(x) is the same for every x."
        )
    if ("upper", "y") in absent:
        found.append(
            "Problem.upper does not depend on y, so the lower problem does not matter; minimise "
            "upper over x alone."
        )
    return found


@effort.briefly
def _look(problem, x, y, batch, key):
    """Both losses, the sizes of their derivatives here and nearby, and four keys: one program."""
    k_near, *keys = jax.random.split(key, 5)
    k_x, k_y, k_u = jax.random.split(k_near, 3)
    u = trees.random_like(k_u, x)
    values = problem.upper(x, y, batch.upper), problem.lower(x, y, batch.lower)
    near = _sizes(problem, _nearby(x, k_x), _nearby(y, k_y), u, batch)
    return values, _sizes(problem, x, y, u, batch), near, keys


def _as_floats(sizes: dict) -> dict:
    return {name: float(size) for name, size in sizes.items()}


def _sizes(problem, x, y, u, batch) -> dict:
    """Norms of the derivatives whose absence means something."""
    f_y = oracles.upper_grad_y(problem, x, y, batch.upper)
    g_x = oracles.lower_grad_x(problem, x, y, batch.lower)
    g_y = oracles.lower_grad(problem, x, y, batch.lower)
    g_yx = oracles.cross_transposed(problem, x, y, u, batch.lower)
    sizes = {("upper", "y"): f_y, ("lower", "x"): g_x, ("lower", "y"): g_y, ("lower", "x, y"): g_yx}
    return {name: trees.norm(tree) for name, tree in sizes.items()}


def _nearby(tree, key):
    """A point some per cent away: a derivative that only happens to vanish does not stay zero."""
    draw = trees.random_like(key, tree)
    size = trees.map(lambda leaf: 0.01 * (1 + jnp.abs(leaf)), tree)
    return trees.map(lambda leaf, s, d: leaf + s * d, tree, size, draw)


def _check_scalar(name: str, loss, x, y, batch) -> None:
    out = eqx.filter_eval_shape(loss, x, y, batch)
    if getattr(out, "shape", None) == ():
        return
    what = f"{out.dtype}{list(out.shape)}" if hasattr(out, "shape") else type(out).__name__
    raise ValueError(
        f"Problem.{name} returned {what}; a scalar is needed. Reduce over the batch, for example "
        "with .mean()."
    )


# --- curvature -----------------------------------------------------------------------------


_hvp = effort.briefly(oracles.hvp)


@effort.briefly
def _cross_square(problem, x, y, u, batch) -> Upper:
    """`(∂²g/∂x∂y) (∂²g/∂y∂x) u`."""
    v = oracles.cross_transposed(problem, x, y, u, batch)
    return oracles.cross(problem, x, y, trees.cast_like(v, y), batch)


def hyper_curvature(problem: Problem, x: Upper, y: Lower, batch: Batch, key) -> tuple[float, float]:
    """Smallest eigenvalue and largest `|eigenvalue|` of the Hessian of `f(x, y*(x))`, see `probe`.

    That is the Hessian of `u → f(u, y + J (u − x))` at x, with y the lower solution there.
    """

    def product(u):
        return _hyper_product(problem, x, y, u, batch)

    lowest, highest, _ = spectrum.extremes(product, x, key)
    return lowest, max(abs(lowest), abs(highest))


@effort.briefly
def _hyper_product(problem, x, y, u, batch) -> Upper:
    """`[I, Jᵀ] ∇²f [I; J] u`, with two solves with the lower Hessian."""
    operator = oracles.hessian(problem, x, y, RepeatedBatch(batch.lower))
    solver = CG(200, CG_TOL)

    def solve(b):
        return solver.solve(operator, b)

    slope = trees.cast_like(oracles.cross_transposed(problem, x, y, u, batch.lower), y)
    along = trees.scale(-1, solve(slope))  # J u
    grads = jax.grad(problem.upper, argnums=(0, 1))
    _, (f_x, f_y) = jax.jvp(lambda x, y: grads(x, y, batch.upper), (x, y), (u, along))
    return trees.sub(f_x, oracles.cross(problem, x, y, solve(f_y), batch.lower))


def _convexity(mu: float, L: float, resolved: bool, eps: float) -> Convexity:
    margin = (100 * eps if resolved else 2e-3) * max(abs(L), abs(mu))
    if not (math.isfinite(mu) and math.isfinite(L)):
        return Convexity.UNKNOWN
    if mu > margin:
        return Convexity.STRONGLY_CONVEX
    return Convexity.CONVEX if mu >= -margin else Convexity.NONCONVEX


def _curved(convexity: Convexity, mu: float, L: float, resolved: bool) -> list[str]:
    if convexity is Convexity.NONCONVEX:
        return [
            f"Problem.lower is nonconvex in y here (an eigenvalue of {mu:.2e}): hypergradients "
            "from the implicit formula need y near a strict local minimum."
        ]
    if convexity is Convexity.CONVEX and L > 0:
        known = "zero to rounding" if resolved else f"not resolved below {2e-3 * L:.1e}"
        return [
            f"The smallest eigenvalue of the lower Hessian is {known}: y*(x) may not be unique. "
            "A ridge on y makes it so."
        ]
    return []


def _inverse(L: float, mu: float) -> float:
    largest = max(abs(L), abs(mu))
    return 1 / largest if largest > 0 else math.nan


def _cg_steps(condition: float, n: int) -> float:
    """`2 ((√κ − 1)/(√κ + 1))^N ≤ CG_TOL`, and never more than n."""
    root = math.sqrt(max(condition, 1.0))
    if root == 1.0:
        return 1.0
    return float(min(n, math.ceil(math.log(2 / CG_TOL) / math.log((root + 1) / (root - 1)))))
