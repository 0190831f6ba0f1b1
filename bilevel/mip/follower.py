"""The follower at a given x, and the leader's favourite among its answers."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bilevel.mip.answer import FEASIBLE
from bilevel.mip.highs import Found, Model, Parts, Solved
from bilevel.mip.program import Program

ROOM = 1e-9  # of the follower's value, in which answers count as equal
NEAR = 1e-4  # a side that tangents, which are exact to 1e-9 of the loss, may end this far from


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
    found = _favourite(p, z, _settled(p, np.where(p.follower, best.z, z)))
    allowed = [point for point in found if p.violation(point) <= FEASIBLE]
    if not allowed:
        return None
    first = min(allowed, key=p.value)
    return Point(first, p.value(first), p.follower_value(first), best.value)


def _settled(p: Program, z: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Replace y by the exact solution of the KKT conditions for its active bounds and rows.

    HiGHS finds the follower's best value to 1e-9, so its y can be wrong by the square root of that.
    If the active set was guessed wrongly, no such solution is feasible, and z is returned as it is.
    """
    if not p.yy.any() or np.any(p.integer & p.follower):
        return z
    y, x, mine = p.follower, ~p.follower, p.follower_rows
    rows = np.vstack([p.rows[mine], np.eye(len(z))[y]])
    low, high = np.r_[p.row_lower[mine], p.lower[y]], np.r_[p.row_upper[mine], p.upper[y]]
    at, n = rows @ z, int(y.sum())
    sign = np.where(at - low <= NEAR, 1.0, 0.0) - np.where(high - at <= NEAR, 1.0, 0.0)
    held = (at - low <= NEAR) | (high - at <= NEAR)
    gradient = (p.follower_cost + p.yx @ z)[y]
    while True:
        A, side = rows[held], np.where(at - low <= NEAR, low, high)[held]
        system = np.block([[p.yy[np.ix_(y, y)], -A[:, y].T], [A[:, y], np.zeros((len(A),) * 2)]])
        found = np.linalg.lstsq(system, np.r_[-gradient, side - A[:, x] @ z[x]], rcond=None)[0]
        pull = sign[held] * found[n:]  # negative: the multiplier has the wrong sign
        if not len(pull) or pull.min() >= -ROOM:
            break
        held[np.flatnonzero(held)[pull.argmin()]] = False
    new = z.copy()
    new[y] = found[:n]
    room = ROOM * (1 + np.abs(at))
    fits = np.all(rows @ new >= low - room) and np.all(rows @ new <= high + room)
    return new if fits and np.abs(new - z).max() <= NEAR else z


def _favourite(p: Program, z, answer) -> list[Float[np.ndarray, " n"]]:
    """Minimise the leader's loss over y among the answers, of which one is known.

    The answers of a convex quadratic loss share its linear part and the gradient of the other.
    """
    slope = np.where(p.follower, p.follower_cost + p.yx @ z, 0.0)
    curved = p.yy[p.yy.any(axis=1)]
    if len(curved) == np.sum(p.follower) == np.linalg.matrix_rank(curved):
        return [answer]
    lower, upper = (np.where(p.follower, side, z) for side in (p.lower, p.upper))
    most, gradient = slope @ answer, curved @ answer
    room = ROOM * (1 + abs(most)), ROOM * (1 + np.abs(gradient))
    parts = Parts(
        p.cost + p.share * (p.yx @ z),
        np.vstack([p.rows, slope, curved]),
        np.r_[p.row_lower, -np.inf, gradient - room[1]],
        np.r_[p.row_upper, most + room[0], gradient + room[1]],
        lower,
        upper,
        p.integer & p.follower,
        p.hessian,
    )
    solved = Model(parts).solve()
    return [solved.z] if solved.found is Found.OPTIMAL else []
