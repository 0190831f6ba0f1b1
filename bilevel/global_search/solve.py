"""Solve a small problem globally, or check a point of one."""

import time

import jax
import numpy as np

from bilevel import trees
from bilevel.driver.answer import FollowerCertificate
from bilevel.driver.result import Outcome, Result, Stats, Status
from bilevel.global_search.candidates import CHECKS, Candidate, measured
from bilevel.global_search.descent import can_improve
from bilevel.global_search.follower import Follower
from bilevel.global_search.functions import LOWER, UPPER, Functions
from bilevel.global_search.rays import lower_fall, upper_ray
from bilevel.global_search.region import Region
from bilevel.global_search.search import Search
from bilevel.global_search.ties import worst_answer
from bilevel.oracles import Price
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Upper

DIFFERS = 1e-2  # relative: a pessimistic upper loss that is told


def solve_small(
    problem: Problem, x0: Upper, y0: Lower, batch: Batch = Batch(), *, why: str
) -> Result:
    """The best point that a global search finds, with a certificate of the follower's gap.

    For up to a few dozen variables and any constraints, smooth functions. Draws points that satisfy
    all constraints, asks the follower at each from many starts (the leader's favourite among equal
    answers), improves the best of them as nonlinear programs over the lower optimality conditions,
    and checks the follower at each resulting point. If the follower has a better answer, the point
    is rejected and the program is solved again with the cut `g(x, y) <= g(x, y_j(x))`.
    In double precision whatever the session's, and deterministic.

    Args:
        why: the choice of this search, for the status.
    """
    begin = time.monotonic()
    functions = Functions(problem, x0, y0, batch)
    compiled = time.monotonic() - begin
    search = Search(functions)
    found = search.run()
    best = found.best
    if _differs(functions, best):
        best = best._replace(worst=worst_answer(problem, functions, best, x0, y0, batch))
    proof = certificate_of(functions, best, x0, y0)._replace(
        traps=found.traps,
        stationary=found.stationary,
        candidates=found.candidates,
        upper_falls=None if found.ray is None else _as(functions.as_x, found.ray, x0),
    )
    x, y = _point(functions, best.z, x0, y0)
    outcome, words = verdict(proof)
    points = functions.points
    return Result(
        x=x,
        y=y,
        history={name: np.array([row[name] for row in found.history]) for name in found.history[0]},
        status=Status(outcome, f"{why}. {words}"),
        certificate=proof,
        state=None,
        stats=Stats(
            steps=found.candidates,
            seconds=time.monotonic() - begin,
            compile_seconds=compiled,
            steps_per_second=float("nan"),
            price=Price(upper_grad=points, lower_grad=points, dense_hessian=points),
            samples={},
            notes=(f"{found.starts} lower problems solved, {found.candidates} candidates checked",),
        ),
    )


def check_small(
    problem: Problem, x: Upper, y: Lower, batch: Batch = Batch()
) -> tuple[FollowerCertificate, Lower]:
    """Feasibility and the follower's gap at a point of a small problem, and a y that is finished.

    Returns:
        The certificate, and y moved to the nearest local answer where that is close; the
        certificate is of that.
    """
    functions = Functions(problem, x, y, batch)
    follower = Follower(functions, Region(functions))
    found = measured(functions, follower, follower.nearest(functions.z0))
    if found.passes():
        found = found._replace(falls=lower_fall(functions, follower.region, found.z))
    proof = certificate_of(functions, found, x, y)
    if found.passes():
        fall = upper_ray(functions, follower, *found[:3])
        away = None if fall is None else _as(functions.as_x, fall[0], x)
        improves = can_improve(functions, follower, *found[:3])
        proof = proof._replace(upper_falls=away, stationary=not improves, candidates=1)
    return proof, _point(functions, found.z, x, y)[1]


def certificate_of(functions: Functions, at: Candidate, x: Upper, y: Lower) -> FollowerCertificate:
    upper, lower = (max(float(excess), 0.0) for excess in at.violation)
    unit, small = map(float, functions.units)
    return FollowerCertificate(
        upper=at.upper * unit,
        lower=at.lower * small,
        lower_best=at.best * small,
        better=_as(functions.as_y, at.better, y),
        upper_violation=upper,
        lower_violation=lower,
        starts=CHECKS + 1,
        minima=at.minima,
        scale=at.scale * small,
        falls=None if at.falls is None else _as(functions.as_y, at.falls, y),
        proved=_is_convex_program(functions, at.z),
        pessimistic=at.worst * unit if _differs(functions, at) else None,
    )


def _differs(functions: Functions, at: Candidate) -> bool:
    """Whether the follower has another answer, with another upper loss."""
    apart = at.worst - at.upper > DIFFERS * (1 / functions.units[UPPER] + abs(at.upper))
    return bool(apart) and at.passes()


def _is_convex_program(functions: Functions, z: np.ndarray) -> bool:
    """Whether the lower problem is a convex quadratic program at x, by its sampled Hessians."""
    f, n = functions, functions.n
    if f.bent or not f.straight[[*f.g, *f.h]].all():
        return False
    weights = f.weights(1)
    weights[:, LOWER] = 1.0
    values = np.linalg.eigvalsh(f(z[None], weights).W[0][n:, n:])
    return bool(values[0] >= -1e-9 * max(values[-1], 0.0))


def _point(functions: Functions, z: np.ndarray, x0: Upper, y0: Lower) -> tuple[Upper, Lower]:
    n = functions.n
    return _as(functions.as_x, z[:n], x0), _as(functions.as_y, z[n:], y0)


def _as(unravel, vector: np.ndarray, like):
    """In the dtypes of the user's tree."""
    return jax.tree.map(
        lambda leaf, old: jax.numpy.asarray(np.asarray(leaf), jax.numpy.result_type(old)),
        unravel(vector),
        trees.map(jax.numpy.asarray, like),
    )


def verdict(proof: FollowerCertificate) -> tuple[Outcome, str]:
    """How a search ended, and what to say of it."""
    if not proof.feasible:
        return Outcome.INFEASIBLE, (
            "No point was found that satisfies all constraints to 1e-6; the result is the nearest "
            "one. Look for constraints that exclude each other, or start elsewhere."
        )
    if proof.falls is not None:
        return Outcome.NOT_OPTIMAL, f"{proof.about_y()} Bound y, or change the lower loss."
    if not proof.optimal:
        return Outcome.NOT_OPTIMAL, (
            "No point was found where y is the follower's best answer; the certificate holds a "
            "better one. The upper constraints may exclude every answer, or the lower problem has "
            "no minimum."
        )
    if not proof.bounded:
        return Outcome.UNBOUNDED, (
            "The upper loss falls for ever along a direction of x (`upper_falls` in the "
            "certificate), with y answering, so it has no minimum. Bound x, or change the upper "
            "loss. The result is one point on the way."
        )
    if not proof.ok:
        return Outcome.STALLED, (
            f"Upper loss {proof.upper:.6g}, and a small step of x still lowers it, with y "
            f"answering. {proof.about_y()} Call bl.solve again with x0=result.x, y0=result.y to "
            "go on from here."
        )
    ties = ""
    if proof.pessimistic is not None:
        ties = (
            " The follower's answer is not unique: this is the optimistic one, and the "
            f"pessimistic upper loss at this x is at least {proof.pessimistic:.6g}."
        )
    elif proof.optimistic is not None:
        ties = (
            " The follower's answer is not unique: this is the pessimistic one, and the "
            f"optimistic upper loss at this x is at most {proof.optimistic:.6g}."
        )
    told = f"Upper loss {proof.upper:.6g}. {proof.about_y()} {proof.about_x()}"
    return Outcome.CONVERGED, told + ties
