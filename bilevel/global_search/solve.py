"""Solve a small problem globally, or check a point of one."""

import time

import jax
import numpy as np

from bilevel import trees
from bilevel.driver.answer import FollowerCertificate
from bilevel.driver.result import Outcome, Result, Stats, Status
from bilevel.global_search.follower import Follower, Region
from bilevel.global_search.functions import Functions
from bilevel.global_search.search import CHECKS, Candidate, Search, measured
from bilevel.oracles import Price
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, Upper


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
    found = Search(functions).run()
    best = found.best
    proof = _certificate(functions, best, y0, found.traps)
    x, y = _point(functions, best.z, x0, y0)
    outcome, words = _verdict(proof)
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
) -> FollowerCertificate:
    """Feasibility and the follower's gap at a point of a small problem."""
    functions = Functions(problem, x, y, batch)
    follower = Follower(functions, Region(functions))
    return _certificate(functions, measured(functions, follower, functions.z0), y, 0)


def _certificate(
    functions: Functions, at: Candidate, like: Lower, traps: int
) -> FollowerCertificate:
    upper, lower = (max(float(excess), 0.0) for excess in at.violation)
    return FollowerCertificate(
        upper=at.upper,
        lower=at.lower,
        lower_best=at.best,
        better=_as(functions.as_y, at.better, like),
        upper_violation=upper,
        lower_violation=lower,
        starts=CHECKS + 1,
        traps=traps,
    )


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


def _verdict(proof: FollowerCertificate) -> tuple[Outcome, str]:
    if proof.ok:
        told = f"Upper loss {proof.upper:.6g}, follower's gap {proof.gap:.1e}"
        return Outcome.CONVERGED, f"{told}; the certificate says how it was checked."
    if not proof.feasible:
        return Outcome.INFEASIBLE, (
            "No point was found that satisfies all constraints to 1e-6; the result is the nearest "
            "one. Look for constraints that exclude each other, or start elsewhere."
        )
    return Outcome.NOT_OPTIMAL, (
        "No point was found where y is the follower's best answer; the certificate holds a better "
        "one. The upper constraints may exclude every answer, or the lower problem has no minimum."
    )
