"""Linear and convex-quadratic problems, recognised from the code of their losses.

A walk over a loss's jaxpr bounds its degree as a polynomial in (x, y): a proof, not a sample. A
problem with losses of degree two at most and constraints of degree one is a `mip.Program`, whose
coefficients are the derivatives at zero; HiGHS then proves how good its answer is.
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from bilevel import mip, trees
from bilevel.driver.answer import FollowerCertificate
from bilevel.driver.result import Outcome, Result, Stats, Status
from bilevel.global_search import double_precision
from bilevel.oracles import Price
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Upper

LARGE = 3  # a degree that no constant has: too high, or not a polynomial
SECONDS = 60.0  # that HiGHS may take
SQUARES = 20  # in the upper loss; each is cut out by tangents, which many squares make slow
MOST = 20_000_000  # entries of a matrix of coefficients
MOVES = "reshape broadcast_in_dim squeeze expand_dims transpose slice rev convert_element_type copy"
SUMS = "add sub neg add_any reduce_sum cumsum concatenate pad split scatter scatter-add"
# Of a degree that is the largest of their arguments', where indices and conditions are constant.
LINEAR = frozenset([*MOVES.split(), *SUMS.split(), "gather", "dynamic_slice", "select_n"])
PRODUCTS = frozenset({"mul", "dot_general"})
LOOPS = frozenset({"scan", "while", "cond"})
CHOICES = {  # where those are among the arguments
    "gather": slice(1, None),
    "dynamic_slice": slice(1, None),
    "select_n": slice(0, 1),
    "scatter": slice(1, 2),
    "scatter-add": slice(1, 2),
}


def degree(fn: Callable[[Any], Any], z: Any) -> int:
    """A bound on the degree of `fn` as a polynomial in the entries of z; `LARGE` above two."""
    closed = jax.make_jaxpr(fn)(z)
    given = [1] * len(closed.jaxpr.invars)
    return max(_degrees(closed.jaxpr, given, [0] * len(closed.jaxpr.constvars)), default=0)


def _degrees(jaxpr: Jaxpr, given: Sequence[int], constants: Sequence[int]) -> list[int]:
    """Of the outputs, for those of the arguments."""
    known = dict(zip([*jaxpr.invars, *jaxpr.constvars], [*given, *constants], strict=True))

    def of(atom) -> int:
        return 0 if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        found = _of_equation(equation, [of(atom) for atom in equation.invars])
        known |= zip(equation.outvars, (min(d, LARGE) for d in found), strict=True)
    return [of(atom) for atom in jaxpr.outvars]


def _of_equation(equation: Any, given: list[int]) -> list[int]:
    name, count = equation.primitive.name, len(equation.outvars)
    if not any(given):
        return [0] * count
    if any(not jnp.issubdtype(out.aval.dtype, jnp.floating) for out in equation.outvars):
        return [LARGE] * count  # a comparison, or a number that is cut to an integer
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    if inner is not None and name not in LOOPS:
        jaxpr = getattr(inner, "jaxpr", inner)
        return _degrees(jaxpr, given, [0] * len(jaxpr.constvars))
    if name in LINEAR and not any(given[CHOICES.get(name, slice(0, 0))]):
        return [max(given)] * count
    if name in PRODUCTS:
        return [sum(given)] * count
    if name == "div" and given[1] == 0:
        return given[:1]
    if name == "square":
        return [2 * given[0]]
    if name == "integer_pow" and equation.params["y"] >= 0:
        return [equation.params["y"] * given[0]]
    return [LARGE] * count


def solve_program(
    problem: Problem, x0: Upper, y0: Lower, batch: Batch, *, why: str, seconds: float = SECONDS
) -> Result | None:
    """The answer of HiGHS with a proven bound; `None` for other problems, or without a point.

    Args:
        why: the choice of this way, for the status.
        seconds: after which the search ends with the best point so far, and its gap.
    """
    if importlib.util.find_spec("highspy") is None:
        return None
    begin = time.monotonic()
    with double_precision():
        wide = trees.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (problem, x0, y0, batch))
        try:
            program = as_program(*wide)
            if program is None:
                return None
            answer = mip.solve(program, seconds=seconds)
        except (TypeError, RuntimeError):  # losses for one dtype alone; HiGHS gave up
            return None
        if answer.z is None:
            return None
        off = program.violation(answer.z)
        return _result(wide, (x0, y0), answer, off, why, time.monotonic() - begin)


def _result(wide, like, answer: mip.Answer, violation: float, why: str, seconds: float) -> Result:
    problem, x0, y0, batch = wide
    unravel = ravel_pytree((x0, y0))[1]
    x, y = unravel(jnp.asarray(answer.z))
    upper = float(problem.upper(x, y, batch.upper))
    lower = float(problem.lower(x, y, batch.lower))
    proof = FollowerCertificate(
        upper=upper,
        lower=lower,
        lower_best=lower - max(answer.follower_value - answer.follower_best, 0.0),
        better=None,
        upper_violation=0.0,
        lower_violation=violation,
        starts=1,
        scale=1 + abs(answer.follower_best),
        proved=True,
        bound=answer.bound + upper - answer.value,  # the program leaves out constants
    )
    closed = answer.ending is mip.Ending.OPTIMAL
    told = "" if closed else f" Time ran out with a gap of {answer.gap:.1e}; more may be possible."
    x, y = jax.tree.map(lambda leaf, old: jnp.asarray(leaf, old.dtype), (x, y), like)
    return Result(
        x=x,
        y=y,
        history={
            name: np.array([value])
            for name, value in (("step", 0), ("seconds", seconds), ("upper", upper))
        },
        status=Status(
            Outcome.CONVERGED if closed else Outcome.STALLED,
            f"{why}. Upper loss {upper:.6g}. {proof.about_y()} {proof.about_x()}{told}",
        ),
        certificate=proof,
        state=None,
        stats=Stats(
            steps=answer.nodes,
            seconds=seconds,
            compile_seconds=0.0,
            steps_per_second=float("nan"),
            price=Price(),
            samples={},
            notes=(f"{answer.nodes} programs solved by HiGHS",),
        ),
    )


def as_program(problem: Problem, x: Upper, y: Lower, batch: Batch) -> mip.Program | None:
    """The problem as a program over (x, y), or `None` where it is none that `mip.solve` takes.

    Args:
        x, y: only their shapes matter.
    """
    flat, unravel = ravel_pytree((x, y))
    n, m = trees.size(x), flat.size
    zero = jnp.zeros_like(flat)
    upper, lower = (
        lambda z: problem.upper(*unravel(z), batch.upper),
        lambda z: problem.lower(*unravel(z), batch.lower),
    )
    sides = _constraints(problem, unravel)
    if max(degree(upper, zero), degree(lower, zero)) > 2 or any(
        degree(part, zero) > 1 for level in sides for part in level
    ):
        return None
    if m * (2 * m + sum(jax.eval_shape(part, zero).size for s in sides for part in s)) > MOST:
        return None
    trial = jnp.asarray(np.random.default_rng(0).normal(size=m))
    above, below = _expanded(upper, trial), _expanded(lower, trial)
    if above is None or below is None:
        return None
    (cost, curved), (follower_cost, answers) = above, below
    follower = np.arange(m) >= n
    share, curved = _shared(curved, answers, follower)
    values = np.linalg.eigvalsh(curved)
    if values[0] < -1e-9 or np.count_nonzero(values > 1e-12 * values[-1]) > SQUARES:
        return None
    bounds, rows = _rows(sides, zero, follower)
    answers[:n, :n] = 0
    matrix, low, high, own = rows
    try:
        return mip.Program(
            cost=cost,
            rows=matrix,
            follower=follower,
            follower_rows=own,
            follower_cost=np.where(follower, follower_cost, 0),
            row_lower=low,
            row_upper=high,
            lower=bounds[0],
            upper=bounds[1],
            hessian=curved if curved.any() else None,
            follower_hessian=answers if answers.any() else None,
            share=share,
        )
    except ValueError:  # a follower that is not convex, products with rows that move
        return None


def _expanded(loss: Callable, trial: Array):
    """Gradient and Hessian at zero of a quadratic loss; `None` where they do not tell the loss.

    They do not where a derivative of the user's own is another function's.
    """

    @jax.jit  # one program: a walk through the operations one by one takes longer
    def derivatives(z, trial):
        return loss(z), jax.grad(loss)(z), jax.hessian(loss)(z), loss(trial)

    value, slope, hessian, there = map(np.array, derivatives(jnp.zeros_like(trial), trial))
    expected = value + slope @ trial + trial @ hessian @ trial / 2
    return (slope, hessian) if np.isclose(there, expected, rtol=1e-9, atol=1e-9) else None


def _constraints(problem: Problem, unravel) -> tuple[tuple[Callable, Callable], ...]:
    """Inequalities and equations of each level, as functions of z that return vectors."""

    def of(members, of_y: bool):
        def values(z, kind: str):
            x, y = unravel(z)
            found = [s.constraints(y, x) if of_y or s.moves else s.constraints(x) for s in members]
            parts = jax.tree.leaves([getattr(c, kind) for c in found])
            return jnp.concatenate([jnp.zeros(0, z.dtype), *(jnp.ravel(p) for p in parts)])

        return (lambda z: values(z, "inequalities")), (lambda z: values(z, "equalities"))

    return of((problem.upper_set,), False), of((problem.lower_set,), True)


def _shared(curved, answers, follower):
    """The multiple of the follower's products that is in the upper loss, and the Hessian left."""
    crossed, products = curved[np.ix_(follower, ~follower)], answers[np.ix_(follower, ~follower)]
    square = np.sum(products**2)
    share = float(np.sum(crossed * products) / square) if square else 0.0
    if not share or not np.allclose(crossed, share * products, atol=1e-12):
        return 0.0, curved
    left = curved.copy()
    left[np.ix_(follower, ~follower)] = left[np.ix_(~follower, follower)] = 0
    return share, left


def _rows(sides, zero, follower):
    """Bounds of the columns, and the other rows with their sides and whose they are."""
    m = len(zero)
    bounds = np.stack([np.full(m, -np.inf), np.full(m, np.inf)])
    kept = []  # (row, low, high, the follower's)
    for own, (inequalities, equations) in zip((False, True), sides, strict=True):
        for part, equal in ((inequalities, False), (equations, True)):
            slopes = jax.jacfwd(part) if m < 64 else jax.jacrev(part)
            matrix, right = map(
                np.asarray, jax.jit(lambda z, f=part, d=slopes: (d(z), -f(z)))(zero)
            )
            for row, side in zip(matrix, right, strict=True):
                _place(row, side, equal, own, bounds, kept, follower)
    matrix = np.array([row for row, *_ in kept]).reshape(-1, m)
    low, high, whose = (np.array([one[k] for one in kept]) for k in (1, 2, 3))
    return bounds, (matrix, low, high, whose.astype(bool))


def _place(row, side, equal: bool, own: bool, bounds, kept, follower) -> None:
    """`row·z <= side` (or `=`) as a bound of a column of the same level, or as a row."""
    if np.isposinf(side):
        return
    used = np.flatnonzero(row)
    if len(used) == 1 and follower[used[0]] == own and not equal:
        at, value = used[0], side / row[used[0]]
        if row[at] > 0:
            bounds[1, at] = min(bounds[1, at], value)
        else:
            bounds[0, at] = max(bounds[0, at], value)
    else:
        kept.append((row, side if equal else -np.inf, side, own))
