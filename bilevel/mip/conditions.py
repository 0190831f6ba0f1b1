"""The follower's optimality conditions as rows, columns, and pairs of which one must be zero.

With `g` the follower's loss and a multiplier for each side of its rows and bounds, y is an answer
if and only if y is allowed, `∇_y g + Σ multipliers · sides = 0`, multipliers are nonnegative, and
each multiplier or the slack of its side is zero. Needs a loss convex in y and no whole numbers.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bilevel.mip.highs import Found, Model, Parts
from bilevel.mip.program import Program

ZERO = 1e-9  # a multiplier above it is positive


class Pair(NamedTuple):
    """A side of a row or bound, and its multiplier: one of slack and multiplier is zero."""

    of_row: bool  # or of a column
    at: int  # the row or column
    sign: int  # 1 for the upper side, −1 for the lower
    side: float  # the bound
    multiplier: int  # its column

    def slack(self, z, rows) -> float:
        at = rows[self.at] @ z[: rows.shape[1]] if self.of_row else z[self.at]
        return float(self.sign * (self.side - at))


class Conditions(NamedTuple):
    """One level in place of two: columns are z, multipliers of pairs, multipliers of equations."""

    parts: Parts
    pairs: tuple[Pair, ...]


def conditions(program: Program) -> Conditions:
    """The program with the follower's conditions in place of the follower, pairs left out."""
    p, n = program, len(program.cost)
    sides = [*_sides(p, of_row=True), *_sides(p, of_row=False)]
    equal = [s for s in sides if s[2] == 0]
    pairs = [Pair(*side, multiplier=n + k) for k, side in enumerate(s for s in sides if s[2])]
    columns = [*pairs, *(Pair(*s, multiplier=n + len(pairs) + k) for k, s in enumerate(equal))]
    total = n + len(columns)
    y = np.flatnonzero(p.follower)
    slopes = np.zeros((len(y), total))  # ∇_y g + Σ multipliers · sides
    slopes[:, :n] = (p.yy + p.yx)[y]
    for c in columns:
        slopes[:, c.multiplier] = (c.sign or 1) * (p.rows[c.at] if c.of_row else _unit(n, c.at))[y]
    cost = np.concatenate([p.cost, np.zeros(len(columns))])
    if p.share:  # Σ_ij R_ij x_i y_j = −follower_cost·y − Σ multipliers · sides, where pairs hold
        cost[:n] -= p.share * np.where(p.follower, p.follower_cost, 0)
        for c in columns:
            cost[c.multiplier] = -p.share * (c.sign or 1) * c.side
    free = len(equal)
    curved = None if p.hessian is None else np.pad(p.hessian, (0, len(columns)))
    return Conditions(
        Parts(
            cost=cost,
            rows=np.vstack([np.pad(p.rows, ((0, 0), (0, len(columns)))), slopes]),
            row_lower=np.concatenate([p.row_lower, -p.follower_cost[y]]),
            row_upper=np.concatenate([p.row_upper, -p.follower_cost[y]]),
            lower=np.concatenate([p.lower, np.zeros(len(pairs)), np.full(free, -np.inf)]),
            upper=np.concatenate([p.upper, np.full(len(columns), np.inf)]),
            integer=np.concatenate([p.integer, np.zeros(len(columns), bool)]),
            hessian=curved,
        ),
        tuple(pairs),
    )


def _unit(n: int, at: int) -> Float[np.ndarray, " n"]:
    row = np.zeros(n)
    row[at] = 1.0
    return row


def _sides(p: Program, *, of_row: bool) -> list[tuple[bool, int, int, float]]:
    """(of_row, index, sign, bound) of the follower's sides; sign 0 for an equation."""
    low, high = (p.row_lower, p.row_upper) if of_row else (p.lower, p.upper)
    found = []
    for i in np.flatnonzero(p.follower_rows if of_row else p.follower):
        if low[i] == high[i]:
            found.append((of_row, int(i), 0, float(low[i])))
            continue
        if np.isfinite(high[i]):
            found.append((of_row, int(i), 1, float(high[i])))
        if np.isfinite(low[i]):
            found.append((of_row, int(i), -1, float(low[i])))
    return found


def proved_bounds(held: Conditions, until: float = np.inf) -> Float[np.ndarray, "pairs 2"]:
    """The largest multiplier and slack of each pair, by linear programs; infinite where unbounded.

    They hold for every allowed point, so a big-M of this size cuts nothing off.

    Args:
        until: a time of `time.monotonic()`; the pairs that are left then have no bounds.
    """
    parts = held.parts
    relaxed = parts._replace(integer=np.zeros_like(parts.integer), hessian=None)
    model, n = Model(relaxed, until), len(parts.cost)

    def most(direction, offset) -> float:
        model.costs(-direction)
        solved = model.solve()
        return offset - solved.value if solved.found is Found.OPTIMAL else np.inf

    bounds = np.full((len(held.pairs), 2), np.inf)
    for k, pair in enumerate(held.pairs):
        if time.monotonic() > until:
            break
        bounds[k, 0] = most(_unit(n, pair.multiplier), 0.0)
    for k, pair in enumerate(held.pairs):
        if np.isfinite(bounds[k, 0]) and time.monotonic() <= until:
            along = parts.rows[pair.at] if pair.of_row else _unit(n, pair.at)
            bounds[k, 1] = most(-pair.sign * along, pair.sign * pair.side)
            if np.isinf(bounds[k, 1]):
                with _at_zero(model, held, _forced(held, bounds[:, 0], k)):
                    bounds[k, 1] = most(-pair.sign * along, pair.sign * pair.side)
    return bounds


def _forced(held: Conditions, most, k: int) -> list[Pair]:
    """Pairs whose multipliers are positive where that of pair k is zero: their slacks are zero.

    An equation `Σ a_j multiplier_j = b` without other columns, all but one at the side that helps
    least, leaves a positive rest to that one.
    """
    parts, own = held.parts, [pair.multiplier for pair in held.pairs]
    largest = np.where(np.arange(len(own)) == k, 0.0, most)
    found = []
    for i in np.flatnonzero((parts.row_lower == parts.row_upper) & (parts.rows[:, own[k]] != 0)):
        a, b = parts.rows[i, own], parts.row_lower[i]
        others = np.count_nonzero(parts.rows[i]) > np.count_nonzero(a)
        if others or not np.isfinite(largest[a != 0]).all():
            continue
        most_of = np.where(a != 0, a * np.where(a != 0, largest, 0), 0)
        high, low = np.maximum(most_of, 0), np.minimum(most_of, 0)
        rest_low, rest_high = b - (high.sum() - high), b - (low.sum() - low)
        positive = ((a > 0) & (rest_low > ZERO)) | ((a < 0) & (rest_high < -ZERO))
        found += [held.pairs[j] for j in np.flatnonzero(positive)]
    return found


@contextlib.contextmanager
def _at_zero(model: Model, held: Conditions, pairs: list[Pair]) -> Iterator[None]:
    """The slacks of some pairs are zero inside."""
    of_row = held.parts.row_lower, held.parts.row_upper
    of_column = held.parts.lower, held.parts.upper

    def between(pair: Pair, low: float, high: float) -> None:
        (model.row if pair.of_row else model.column)(pair.at, low, high)

    for pair in pairs:
        between(pair, pair.side, pair.side)
    try:
        yield
    finally:
        for pair in pairs:
            low, high = of_row if pair.of_row else of_column
            between(pair, low[pair.at], high[pair.at])


def with_switches(held: Conditions, of: Int[np.ndarray, " k"], bounds) -> Parts:
    """The parts with a column of zero or one for some pairs: the multiplier, or the slack, is zero.

    Args:
        of: the pairs.
        bounds: the largest multiplier and slack of every pair.
    """
    parts, k = held.parts, len(of)
    n = len(parts.cost)
    on, off = np.zeros((k, n + k)), np.zeros((k, n + k))
    upper = np.zeros(k)
    for row, i in enumerate(of):
        pair, (multiplier, slack) = held.pairs[i], bounds[i] + 1e-6 * (1 + np.abs(bounds[i]))
        on[row, pair.multiplier], on[row, n + row] = 1, -multiplier  # multiplier <= M switch
        along = parts.rows[pair.at] if pair.of_row else _unit(n, pair.at)
        off[row, :n], off[row, n + row] = -pair.sign * along, slack  # slack <= M (1 − switch)
        upper[row] = slack - pair.sign * pair.side
    low = np.full(k, -np.inf)
    return Parts(
        cost=np.concatenate([parts.cost, np.zeros(k)]),
        rows=np.vstack([np.pad(parts.rows, ((0, 0), (0, k))), on, off]),
        row_lower=np.concatenate([parts.row_lower, low, low]),
        row_upper=np.concatenate([parts.row_upper, np.zeros(k), upper]),
        lower=np.concatenate([parts.lower, np.zeros(k)]),
        upper=np.concatenate([parts.upper, np.ones(k)]),
        integer=np.concatenate([parts.integer, np.ones(k, bool)]),
        hessian=None if parts.hessian is None else np.pad(parts.hessian, (0, k)),
    )
