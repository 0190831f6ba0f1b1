"""Sixty small followers whose answers are known, or known not to exist; the front door on each.

`python -m benchmarks.zoo [part of a name]`. Right values come from brute force in NumPy, on a grid
of x and y that is refined at every local minimum, and are kept beside what `bl.solve` says.
"""

import json
import sys
import time
from typing import NamedTuple

import numpy as np

from benchmarks.harness import RESULTS
from benchmarks.zoo_cases import CASES, Case

KEPT = RESULTS / "zoo.json"
CELLS = {1: 4001, 2: 161}  # points of a side, by entries of y
KEEP = 60  # local minima that are refined at each x
LIKED = 6  # answers from which the leader's favourite is sought
EQUAL = 1e-15  # times the scale: lower losses this close are equal; y in (y − x)^6 is off by 0.003
_SIDE = np.linspace(-1, 1, 5)
OFFSETS = {m: np.stack([o.ravel() for o in np.meshgrid(*[_SIDE] * m)]) for m in (1, 2)}


class Row(NamedTuple):
    """One follower: what is right, what was said, and whether that is so."""

    name: str
    kind: str
    right: float | None  # the upper loss; None: no solution
    upper: float
    gap: float  # by brute force
    claimed: bool
    solved: bool
    false: bool
    processor: float
    status: str
    x: list[float]
    y: list[float]


def minima(case: Case, x: np.ndarray, extra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Local minima y of the lower loss at x and their values, from a grid and by refinement."""
    m, side = len(case.y0), np.linspace(*case.y_range, CELLS[len(case.y0)])
    cell = side[1] - side[0]
    ends = [end for end in case.box or () if abs(end) <= side[-1]]  # exact, where they tie
    side = np.unique([*side, *ends])
    points = np.stack([p.ravel() for p in np.meshgrid(*[side] * m, indexing="ij")])
    value = _inside(case, x, points).reshape([len(side)] * m)
    low = np.isfinite(value)
    for axis in range(m):
        width = [(1, 1) if axis == other else (0, 0) for other in range(m)]
        wide = np.pad(value, width, constant_values=np.inf)
        before, after = (np.take(wide, range(i, i + len(side)), axis) for i in (0, 2))
        low &= (value <= before) & (value <= after)
    found = points[:, low.ravel()]
    order = np.argsort(_inside(case, x, found), kind="stable")
    spread = order[np.linspace(0, len(order) - 1, KEEP).astype(int)] if len(order) else order
    y = np.concatenate([found[:, order[:KEEP]], found[:, spread], extra], 1)
    offsets = np.stack([o.ravel() for o in np.meshgrid(*[np.linspace(-1, 1, 9)] * m)])
    for _ in range(16 if y.shape[1] else 0):
        near = y[:, :, None] + cell * offsets[:, None]
        there = _inside(case, x, near.reshape(m, -1)).reshape(y.shape[1], -1)
        best = there.argmin(1)
        lower = there[np.arange(y.shape[1]), best] < _inside(case, x, y)
        y = np.where(lower, np.take_along_axis(near, best[None, :, None], 2)[:, :, 0], y)
        cell /= 3
    return y, _inside(case, x, y)


def liked(case: Case, x: np.ndarray, y: np.ndarray, bar: float) -> float:
    """The least upper loss near y among answers whose lower loss is at most the bar.

    Answers may be a curve, which no step along a straight line stays on: each point that is tried
    goes down the lower loss first.
    """
    m, cell = len(y), 0.2
    y = y[:, case.upper(np, x, y).argsort(kind="stable")[:LIKED]]
    for _ in range(30):
        near = y[:, :, None] + cell * OFFSETS[m][:, None]
        tries = np.concatenate([y, settled(case, x, near.reshape(m, -1), cell / 4)], 1)
        value = np.where(_inside(case, x, tries) <= bar, case.upper(np, x, tries), np.inf)
        y = tries[:, value.argsort(kind="stable")[:LIKED]]
        cell /= 1.8
    return float(np.min(case.upper(np, x, y)))


def settled(case: Case, x: np.ndarray, y: np.ndarray, cell: float, steps: int = 10) -> np.ndarray:
    """Down the lower loss from each y, over ever finer grids."""
    m = len(y)
    for _ in range(steps):
        near = np.concatenate([y[:, :, None], y[:, :, None] + cell * OFFSETS[m][:, None]], 2)
        best = _inside(case, x, near.reshape(m, -1)).reshape(y.shape[1], -1).argmin(1)
        y = np.take_along_axis(near, best[None, :, None], 2)[:, :, 0]
        cell /= 2.5
    return y


def _inside(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        value = np.broadcast_to(case.lower(np, x, y), y.shape[1:]).astype(float)
        for rows in case.rows:
            for row in rows(np, x, y):
                value = np.where(row <= 0, value, np.inf)
    return np.where(np.isnan(value), np.inf, value)


def brute(case: Case) -> float:
    """The least upper loss where y answers x, the leader's favourite among equals."""
    lo, hi = case.x_range
    best, none = (np.inf, np.zeros(1)), np.zeros((len(case.y0), 0))
    for _ in range(4):
        for x in np.linspace(lo, hi, 61):
            y, value = minima(case, np.array([x]), none)
            bar = value.min(initial=np.inf) + EQUAL * max(case.scale, abs(value.min(initial=0)))
            equal = (value <= bar) & np.isfinite(value)
            if equal.any():
                upper = liked(case, np.array([x]), y[:, equal], bar)
                best = min(best, (upper, x), key=lambda pair: pair[0])
        width = (hi - lo) / 25
        lo, hi = max(lo, best[1] - width), min(hi, best[1] + width)
    return best[0]


def measure(case: Case, right: float | None) -> Row:
    """The front door on one follower, in double precision."""
    import jax
    import jax.numpy as jnp

    import bilevel as bl

    begin = time.process_time()
    with jax.enable_x64(True):
        problem = bl.Problem(
            lambda x, y, b: case.upper(jnp, x, y),
            lambda x, y, b: case.lower(jnp, x, y),
            upper_set=bl.sets.Box(*case.x_range) if case.bounded_x else None,
            lower_set=case.lower_set(bl, jnp),
        )
        x0, y0 = jnp.asarray(case.x0), jnp.asarray(case.y0)
        result = bl.solve(problem, x0=x0, y0=y0, progress=False)
    x, y = np.asarray(result.x, float), np.asarray(result.y, float)
    claimed = result.status.ok
    upper = float(case.upper(np, x, y))
    if right is None:
        gap, solved, false = np.nan, not claimed, claimed
    else:
        mine = float(case.lower(np, x, y))
        _, value = minima(case, x, y[:, None])
        gap, room = max(mine - value.min(), 0.0), 1e-3 * (1 + abs(right))
        answers = gap <= 1e-6 * min(1 + abs(mine), case.scale) + 1e-13
        solved = claimed and answers and abs(upper - right) <= room
        false = claimed and not (answers and right - room <= upper <= right + 10 * room)
    spent = time.process_time() - begin
    status = str(result.status)
    return Row(
        case.name, case.kind, right, upper, float(gap), claimed, bool(solved), bool(false),
        spent, status, x.tolist(), y.tolist(),
    )  # fmt: skip


def main(only: str = "") -> None:
    """Each case, a line as it ends; the file is written as it goes."""
    rows: list[Row] = []
    for case in CASES:
        if only not in case.name:
            continue
        right = brute(case) if case.exists else None
        row = measure(case, right)
        rows.append(row)
        print(told(row), flush=True)
        if not only:
            KEPT.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n", "utf-8")
    print(summary(rows))


def told(row: Row) -> str:
    """One line."""
    what = "FALSE CLAIM" if row.false else "solved" if row.solved else "not solved"
    right = "none" if row.right is None else f"{row.right:.6g}"
    return (
        f"{row.name:<34} {what:<12} right {right:<12} upper {row.upper:<14.6g} gap {row.gap:<9.1e}"
        f" {'claimed' if row.claimed else 'not claimed'} {row.processor:.1f} s"
    )


def summary(rows: list[Row]) -> str:
    """How many were solved, and what was claimed falsely."""
    false = [row.name for row in rows if row.false]
    missed = [row.name for row in rows if not row.solved]
    return (
        f"{sum(row.solved for row in rows)} of {len(rows)} solved; claimed falsely: "
        f"{', '.join(false) or 'none'}; not solved: {', '.join(missed) or 'none'}."
    )


if __name__ == "__main__":
    main(*sys.argv[1:2])
