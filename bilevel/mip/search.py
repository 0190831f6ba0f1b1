"""Branch and bound on the pairs of a follower's conditions, without a big-M that could be wrong.

A node fixes some multipliers, and some slacks, at zero; its relaxation leaves out the pairs that
remain, but for those that HiGHS can hold itself because bounds on both are proved. The idea of
branching on pairs: Bard, Moore. "A branch and bound algorithm for the bilevel programming
problem". SIAM J. Sci. Stat. Comput. 1990; that a guessed big-M cannot be trusted: Pineda, Morales.
"Solving linear bilevel problems using big-Ms: not all that glitters is gold". IEEE Trans. Power
Systems 2019.
"""

import heapq
import itertools
import time
from typing import Any, NamedTuple

import numpy as np

from bilevel.mip.answer import Answer, Ending
from bilevel.mip.conditions import Conditions, Pair, conditions, proved_bounds, with_switches
from bilevel.mip.follower import Point, best_answer
from bilevel.mip.highs import Found, Model
from bilevel.mip.program import Program

ZERO = 1e-7  # a multiplier or slack below it is zero
CLOSED = 1e-7  # relative gap at which a search ends


class Bound(NamedTuple):
    """A change of a node to its parent: new bounds of a row or a column."""

    of_row: bool
    at: int
    low: float
    high: float


def search(program: Program, *, nodes: int, big_m: float | None, until: float = np.inf) -> Answer:
    """The best point of a program whose follower has no whole numbers."""
    held = conditions(program)
    guess = None if big_m is None else _by_guess(program, held, big_m)
    tree = _Tree(program, held, nodes, guess, until)
    answer = tree.run()
    if big_m is None or answer.z is None:
        return answer
    fails = guess is None or guess.value > answer.value + CLOSED * max(1, abs(answer.value))
    return answer._replace(big_m_fails=fails)


def _by_guess(program: Program, held: Conditions, big_m: float) -> Point | None:
    """What the program with a guessed big-M ends with, y checked."""
    of = np.arange(len(held.pairs))
    parts = with_switches(held, of, np.full((len(of), 2), big_m))
    solved = Model(parts).solve()
    return None if solved.z is None else best_answer(program, solved.z[: len(program.cost)])


def _halves(pair: Pair) -> list[Bound]:
    """The multiplier is zero, or the slack."""
    return [
        Bound(False, pair.multiplier, 0.0, 0.0),
        Bound(pair.of_row, pair.at, pair.side, pair.side),
    ]


class _Tree:
    """The nodes that are open, and the best point so far."""

    def __init__(self, program: Program, held: Conditions, nodes: int, first: Point | None, until):
        self.until = until
        self.program, self.pairs, self.left = program, held.pairs, nodes
        self.best, self.solved = first, 0
        self.lost = np.inf  # the least bound of a node whose point was refused and has no pair left
        self.rows = held.parts.rows
        parts = held.parts
        bounds = proved_bounds(held, time.monotonic() + (until - time.monotonic()) / 2)
        held_by_highs = np.isfinite(bounds).all(axis=1)
        self.open_pairs = [held.pairs[k] for k in np.flatnonzero(~held_by_highs)]
        of = np.flatnonzero(held_by_highs)
        parts = with_switches(held, of, bounds)
        self.model, self.parts = Model(parts, until), parts

    def run(self) -> Answer:
        count, n = itertools.count(), len(self.program.cost)
        open_nodes: list[tuple[float, int, tuple[Bound, ...]]] = [(-np.inf, next(count), ())]
        while open_nodes:
            bound, _, changes = open_nodes[0]
            if self._closed(bound):
                return self._answer(Ending.OPTIMAL, bound)
            if self.solved >= self.left or time.monotonic() > self.until:
                return self._answer(Ending.LIMIT, bound)
            heapq.heappop(open_nodes)
            solved = self._solve(changes)
            if solved.found is Found.UNBOUNDED:  # as long as pairs are left out, it proves nothing
                halves = self._next(changes)
                if not halves:
                    return self._answer(Ending.UNBOUNDED, -np.inf)
                for change in halves:
                    heapq.heappush(open_nodes, (-np.inf, next(count), (*changes, change)))
                continue
            if solved.found is Found.LATE:
                self._take(None if solved.z is None else best_answer(self.program, solved.z[:n]))
                others = open_nodes[0][0] if open_nodes else np.inf
                return self._answer(Ending.LIMIT, min(max(bound, solved.bound), others))
            if solved.found is Found.INFEASIBLE or self._closed(solved.bound):
                continue
            self._take(best_answer(self.program, solved.z[:n]))
            changed = self._branches(solved.z)
            if not changed and not self._closed(solved.bound):
                self.lost = min(self.lost, solved.bound)
            for change in changed:
                heapq.heappush(open_nodes, (solved.bound, next(count), (*changes, change)))
        return self._answer(Ending.OPTIMAL if self.best else Ending.INFEASIBLE, np.inf)

    def _closed(self, bound: float) -> bool:
        value = np.inf if self.best is None else self.best.value
        return bool(np.isfinite(value) and bound >= value - CLOSED * max(1, abs(value)))

    def _take(self, point: Point | None) -> None:
        if point and (self.best is None or point.value < self.best.value):
            self.best = point

    def _solve(self, changes: tuple[Bound, ...]) -> Any:
        self.solved += 1
        for change in changes:
            self._set(change)
        solved = self.model.solve()
        for change in changes:
            low, high = self._sides(change.of_row)
            self._set(change._replace(low=low[change.at], high=high[change.at]))
        return solved

    def _sides(self, of_row: bool) -> tuple[Any, Any]:
        parts = self.parts
        return (parts.row_lower, parts.row_upper) if of_row else (parts.lower, parts.upper)

    def _set(self, change: Bound) -> None:
        (self.model.row if change.of_row else self.model.column)(*change[1:])

    def _branches(self, z) -> list[Bound]:
        """Two halves that hold every allowed point of this node; none where its point is one."""
        n = self.rows.shape[1]
        pairs = [(min(z[p.multiplier], p.slack(z[:n], self.rows)), p) for p in self.pairs]
        far, pair = max(pairs, key=lambda one: one[0], default=(0.0, None))
        return [] if pair is None or far <= ZERO else _halves(pair)

    def _next(self, changes: tuple[Bound, ...]) -> list[Bound]:
        """Two halves by a pair that neither HiGHS holds nor this node has fixed."""
        free = (h for h in map(_halves, self.open_pairs) if not set(h) & set(changes))
        return next(free, [])

    def _answer(self, ending: Ending, bound: float) -> Answer:
        bound = min(bound, self.lost)
        if not self._closed(bound) and ending in (Ending.OPTIMAL, Ending.INFEASIBLE):
            ending = Ending.LIMIT if np.isfinite(bound) else ending
        if self.best is None:
            return Answer(ending, None, np.inf, bound, np.nan, np.nan, self.solved)
        best = self.best
        values = best.follower_value, best.follower_best
        return Answer(ending, best.z, best.value, min(bound, best.value), *values, self.solved)
