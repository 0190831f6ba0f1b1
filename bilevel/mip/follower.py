"""The follower at a given x, and the leader's favourite among its answers."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bilevel.mip.answer import FEASIBLE
from bilevel.mip.highs import Found, Model, Parts, Solved
from bilevel.mip.program import Program

ROOM = 1e-9  # of the follower's value, in which answers count as equal


class Point(NamedTuple):
    """A point that is allowed, with y an answer of the follower."""

    z: Float[np.ndarray, " n"]
    value: float
    follower_value: float
    follower_best: float


def follower_parts(program: Program, z: Float[np.ndarray, " n"]) -> Parts:
    """The follower's program at the x of z; x is fixed."""
    p, mine = program, program.follower_rows
    lower, upper = (np.where(p.follower, side, z) for side in (p.lower, p.upper))
    cost = np.where(p.follower, p.follower_cost + p.yx @ z, 0.0)
    whole = p.integer & p.follower
    sides = p.row_lower[mine], p.row_upper[mine]
    return Parts(cost, p.rows[mine], *sides, lower, upper, whole, p.yy if p.yy.any() else None)


def follower_best(program: Program, z: Float[np.ndarray, " n"]) -> Solved:
    """Solve the follower at the x of z."""
    return Model(follower_parts(program, z)).solve()


def best_answer(program: Program, z: Float[np.ndarray, " n"]) -> Point | None:
    """The leader's favourite answer of the follower to the x of z; `None` where none is allowed."""
    p = program
    z = np.where(p.integer, np.round(z), z)
    best = follower_best(p, z)
    if best.found is not Found.OPTIMAL:
        return None
    if p.yy.any():  # strictly convex or not, y is an answer if its value is the smallest
        room = FEASIBLE * (1 + abs(best.value))
        found = [np.where(p.follower, best.z, z), z]
        found = [one for one in found if p.follower_value(one) <= best.value + room]
    else:
        found = _favourite(p, z, best.value)
    allowed = [point for point in found if p.violation(point) <= FEASIBLE]
    if not allowed:
        return None
    first = min(allowed, key=p.value)
    return Point(first, p.value(first), p.follower_value(first), best.value)


def _favourite(p: Program, z, best: float) -> list[Float[np.ndarray, " n"]]:
    """Minimise the leader's loss over y among the answers."""
    row = np.where(p.follower, p.follower_cost + p.yx @ z, 0.0)
    fixed = ~p.follower
    lower, upper = (np.where(fixed, z, side) for side in (p.lower, p.upper))
    parts = Parts(
        p.cost + p.share * (p.yx @ z),
        np.vstack([p.rows, row]),
        np.append(p.row_lower, -np.inf),
        np.append(p.row_upper, best + ROOM * (1 + abs(best))),
        lower,
        upper,
        p.integer & p.follower,
        p.hessian,
    )
    solved = Model(parts).solve()
    return [solved.z] if solved.found is Found.OPTIMAL else []
