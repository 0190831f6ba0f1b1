"""A follower with whole numbers, met with its own answers.

A point of the relaxation (the leader's loss over everything that both allow) is refused by an
answer ŷ of the follower that is better: from then on, y is as good as ŷ, or x makes ŷ impossible.
Because x is whole in the rows that it shares with the follower, "impossible" is a set of rows with
whole sides, and the M of these rows follow from the bounds of the columns.

Where the leader only takes columns away from the follower, who may always do with less, an answer
without what was taken is an answer still; that is one row, without new columns.

Mitsos. "Global solution of nonlinear mixed-integer bilevel programs". J. Global Optimization 2010.
Lozano, Smith. "A value-function-based exact approach for the bilevel mixed-integer programming
problem". Operations Research 2017. Fischetti, Ljubic, Monaci, Sinnl. "Interdiction games and
monotonicity, with application to knapsack problems". INFORMS J. Computing 2019.
"""

import numpy as np

from bilevel.errors import Refused
from bilevel.mip.answer import Answer, Ending
from bilevel.mip.follower import Point, best_answer, follower_best
from bilevel.mip.highs import Found, Model, Parts
from bilevel.mip.program import Program

CLOSED = 1e-7


def search(program: Program, *, nodes: int) -> Answer:
    """The best point of a program whose follower has whole numbers.

    Raises:
        ValueError: a loss is quadratic, or x is not whole and bounded where the follower sees it.
    """
    _check(program)
    p, n = program, len(program.cost)
    parts = Parts(p.cost, p.rows, p.row_lower, p.row_upper, p.lower, p.upper, p.integer, p.hessian)
    best: Point | None = None
    bound, takes = -np.inf, _takes(p)
    for k in range(nodes):
        relaxed = Model(parts).solve()
        if relaxed.found is Found.UNBOUNDED:
            return _answer(Ending.UNBOUNDED, best, -np.inf, k + 1)
        if relaxed.found is Found.INFEASIBLE:
            return _answer(Ending.OPTIMAL if best else Ending.INFEASIBLE, best, np.inf, k + 1)
        bound, z = relaxed.bound, relaxed.z[:n]
        point = best_answer(p, z)
        if point and (best is None or point.value < best.value):
            best = point
        if best and bound >= best.value - CLOSED * max(1, abs(best.value)):
            return _answer(Ending.OPTIMAL, best, bound, k + 1)
        answer = follower_best(p, np.where(p.integer, np.round(z), z))
        if answer.found is Found.UNBOUNDED:
            return _answer(Ending.UNBOUNDED, best, -np.inf, k + 1)
        parts = (
            _without(p, parts, answer.z) if takes is None else _with_less(p, parts, answer.z, takes)
        )
    return _answer(Ending.LIMIT, best, bound, nodes)


def _check(p: Program) -> None:
    if p.yy.any() or p.yx.any() or p.hessian is not None:
        raise Refused("a follower with whole numbers needs linear losses, without products.")
    mine = p.rows[p.follower_rows]
    seen = np.flatnonzero(mine.any(axis=0) & ~p.follower)
    for i in seen:
        if not p.integer[i] or not np.isfinite([p.lower[i], p.upper[i]]).all():
            raise Refused(
                f"column {p.names[i]} of the leader stands in a row of a follower with whole "
                "numbers; it must be whole and have both bounds."
            )
        if np.any(mine[:, i] != np.round(mine[:, i])):
            raise Refused(
                f"column {p.names[i]} of the leader has a fraction in a row of a follower with "
                "whole numbers; multiply the row until it is whole."
            )


def _takes(p: Program) -> list[tuple[int, int, float]] | None:
    """Columns x and y of the rows `a x + b y <= side` by which x = 1 takes y away, and the y that
    stays; `None` where the rows of the follower hold anything else that less y could violate."""
    found = []
    if np.any(p.lower[p.follower] != 0) or np.isfinite(p.row_lower[p.follower_rows]).any():
        return None
    for row, side in zip(p.rows[p.follower_rows], p.row_upper[p.follower_rows], strict=True):
        x, y = np.flatnonzero(row * ~p.follower), np.flatnonzero(row * p.follower)
        if np.any(row < 0) or len(x) > 1 or (len(x) and len(y) != 1):
            return None
        for i in x:
            if p.lower[i] != 0 or p.upper[i] != 1 or row[i] > side:
                return None
            found.append((i, y[0], (side - row[i]) / row[y[0]]))
    return found


def _with_less(p: Program, parts: Parts, answer, takes) -> Parts:
    """From now on y is as good as this answer without what x takes away."""
    gain = np.where(p.follower, np.minimum(p.follower_cost, 0) * answer, 0)
    row = np.zeros(len(parts.cost))
    row[: len(p.cost)] = np.where(p.follower, p.follower_cost, 0)
    for x, y, stays in takes:  # cost·y <= Σ gain (1 − x)
        if answer[y] > stays + 1e-6:
            row[x] += gain[y]
    return parts._replace(
        rows=np.vstack([parts.rows, row]),
        row_lower=np.append(parts.row_lower, -np.inf),
        row_upper=np.append(parts.row_upper, gain.sum()),
    )


def _without(p: Program, parts: Parts, answer) -> Parts:
    """Points at which the follower would rather take this answer are cut off."""
    n, total = len(p.cost), len(parts.cost)
    y = np.where(p.follower, answer, 0)
    x_rows = np.where(p.follower, 0, p.rows)
    blocked = []  # (row over the columns, its lower side): any of them makes the answer impossible
    for i in np.flatnonzero(p.follower_rows & x_rows.any(axis=1)):
        at = p.rows[i] @ y
        if np.isfinite(p.row_upper[i]):
            blocked.append((x_rows[i], np.floor(p.row_upper[i] - at + 1e-6) + 1))
        if np.isfinite(p.row_lower[i]):
            blocked.append((-x_rows[i], np.floor(at - p.row_lower[i] + 1e-6) + 1))
    lows = [_least(row, p.lower, p.upper) for row, _ in blocked]
    k = len(blocked)
    rows = np.zeros((k + 2, total + k + 1))  # the first new column: y is as good as the answer
    low, high = np.full(k + 2, -np.inf), np.full(k + 2, np.inf)
    value = p.follower_cost @ y
    most = -_least(-np.where(p.follower, p.follower_cost, 0), p.lower, p.upper)
    rows[0, :n] = np.where(p.follower, p.follower_cost, 0)
    if np.isfinite(most):
        rows[0, total], high[0] = most - value, most
    elif k:
        raise Refused("the follower's loss has no largest value; give its columns both bounds.")
    else:
        high[0] = value
    for j, ((row, side), least) in enumerate(zip(blocked, lows, strict=True)):
        rows[j + 1, :n], rows[j + 1, total + 1 + j], low[j + 1] = row, least - side, least
    rows[-1, total:], low[-1] = 1, 1
    return Parts(
        np.pad(parts.cost, (0, k + 1)),
        np.vstack([np.pad(parts.rows, ((0, 0), (0, k + 1))), rows]),
        np.concatenate([parts.row_lower, low]),
        np.concatenate([parts.row_upper, high]),
        np.pad(parts.lower, (0, k + 1)),
        np.concatenate([parts.upper, np.ones(k + 1)]),
        np.concatenate([parts.integer, np.ones(k + 1, bool)]),
    )


def _least(row, lower, upper) -> float:
    """The smallest value of a row over the bounds."""
    used = row != 0
    return float(np.where(row > 0, lower, upper)[used] @ row[used])


def _answer(ending: Ending, best: Point | None, bound: float, solved: int) -> Answer:
    if best is None:
        return Answer(ending, None, np.inf, bound, np.nan, np.nan, solved)
    values = best.follower_value, best.follower_best
    return Answer(ending, best.z, best.value, min(bound, best.value), *values, solved)
