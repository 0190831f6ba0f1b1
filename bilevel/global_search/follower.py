"""The lower problem at given x, solved globally: minima from many starts, and the best of them."""

from typing import NamedTuple

import numpy as np

from bilevel.driver.answer import FEASIBLE
from bilevel.global_search.functions import LOWER, UPPER, Functions
from bilevel.global_search.interior import FAR, Minima, minimise
from bilevel.global_search.kinks import settle
from bilevel.global_search.region import Region

TIED = 1e-8  # times the scale of the lower loss: minima this close are equally good
LOST = 1e-8  # times that scale: a value seen this far below every minimum says that one is missing
INSIDE = 1e-12  # largest violation of a point whose value counts as seen, where no start ended
APART = 1e-5  # times the scale of the lower loss: minima this far apart are different
LOOKS = 24  # values of the lower loss that are looked at for each start


class Responses(NamedTuple):
    """The follower's best answer at each x, the leader's favourite among equals."""

    z: np.ndarray  # (x, y*(x)); NaN where no start ended in a minimum
    c: np.ndarray  # all functions there
    dual: np.ndarray  # multipliers of the lower inequalities
    force: np.ndarray  # multipliers of the lower equations
    lower: np.ndarray  # the least lower loss that was found; infinite where none
    ended: np.ndarray  # whether it is at a minimum, as far as it was looked at
    worst: np.ndarray  # the largest upper loss among minima that are equally good
    minima: np.ndarray  # how many different values of the lower loss the minima have

    def take(self, which) -> "Responses":
        """At some x."""
        return Responses(*(part[which] for part in self))


class Follower:
    """Solves the lower problem at many x together."""

    def __init__(self, functions: Functions, region: Region):
        self.functions, self.region = functions, region
        self.starts = 0  # used so far

    def respond(self, x: np.ndarray, starts: int, extra: np.ndarray | None = None) -> Responses:
        """The global answer at each row of x.

        Local minima from `starts` points and from `extra` (rows x k x m). Half of the points are
        drawn, the others are the best of many where the loss was only looked at.
        """
        f, n = self.functions, self.functions.n
        looks, values = self._look(x, LOOKS * starts, extra)
        found = self._minima(x, starts, _promising(looks, values, starts - starts // 2), extra)
        shape = (len(x), -1)
        upper, lower = f.violations(found.c)
        solved = (lower <= FEASIBLE) & (found.error <= 1e-5)
        g = np.where(solved, found.c[:, LOWER], np.inf).reshape(shape)
        # Where the loss was seen to be lower than at every minimum, go down from there. Starts
        # that did not end saw values, too: of a loss that falls for ever along a curve, say.
        seen = np.where((lower <= INSIDE) & ~np.isnan(found.c[:, LOWER]), found.c[:, LOWER], np.inf)
        values = np.concatenate([values, seen.reshape(shape)], 1)
        looks = np.concatenate([looks, found.z[:, n:].reshape(*g.shape, -1)], 1)
        slack = np.abs(found.dual * found.c[:, f.g]).sum(1).reshape(shape).min(1, initial=np.inf)
        lost = values.min(1) < g.min(1) - LOST * f.scale(g.min(1)) - 2 * slack
        if lost.any():
            ends = self._go_down(x[lost], looks[lost], values[lost])
            found, g, upper = _joined(found, g, upper, ends, lost, f)
        best = g.min(1)
        with np.errstate(invalid="ignore"):
            tied = g <= (best + TIED * f.scale(best))[:, None]
        value = found.c[:, UPPER].reshape(g.shape)
        liked = value + np.where(upper <= FEASIBLE, 0, 1e8 * (1 + upper)).reshape(g.shape)
        pick = np.where(tied & np.isfinite(g), liked, np.inf).argmin(1)
        picked = found.take(np.arange(len(x)) * g.shape[1] + pick)
        known = np.isfinite(best)
        z = np.where(known[:, None], picked.z, np.nan)
        worst = np.where(tied & np.isfinite(g), value, -np.inf).max(1)
        ended = known & (np.abs(z[:, n:]).max(1, initial=0) < FAR) & (picked.error < np.inf)
        minima = _different(g, APART * f.scale(best))
        return Responses(z, picked.c, picked.dual, picked.force, best, ended, worst, minima)

    def nearest(self, z: np.ndarray) -> np.ndarray:
        """z with y at the local answer that is next to it, where there is one close by."""
        f, n = self.functions, self.functions.n
        found = minimise(f, z[None], slice(n, None), f.g, f.h, cost=LOWER)
        moved = np.abs(found.z[0] - z).max(initial=0)
        close = found.error[0] <= 1e-6 and moved <= 1e-2 * (1 + np.abs(z[n:]).max(initial=0))
        return found.z[0] if close else z

    def _look(self, x, count: int, extra) -> tuple[np.ndarray, np.ndarray]:
        """Points y at each x and the lower loss there; infinite where they are not feasible."""
        f, n = self.functions, self.functions.n
        centres = np.repeat(f.z0[None, None, n:], len(x), 0)
        if extra is not None:
            centres = np.concatenate([centres, extra], 1)
        y = self.region.around(centres, count)
        z = np.concatenate([np.repeat(x[:, None], count, 1), y], 2).reshape(-1, f.size)
        c = f.values(z)
        _, lower = f.violations(c)
        value = np.where((lower <= FEASIBLE) & ~np.isnan(c[:, LOWER]), c[:, LOWER], np.inf)
        return y, value.reshape(len(x), count)

    def _minima(self, x, starts: int, promising: np.ndarray, extra) -> Minima:
        """Local minima at each x, the starts of one x side by side."""
        f, n = self.functions, self.functions.n
        drawn = np.repeat(self.region.draw(starts // 2 + 1, seed=1)[None, :, n:], len(x), 0)
        every = np.concatenate(([] if extra is None else [extra]) + [promising, drawn], 1)
        z = np.concatenate([np.repeat(x[:, None], every.shape[1], 1), every], 2)
        self.starts += z.shape[0] * z.shape[1]
        return minimise(f, z.reshape(-1, f.size), slice(n, None), f.g, f.h, cost=LOWER)

    def _go_down(self, x, looks, values) -> Minima:
        """From the lowest value that was seen, without derivatives; a kink has none."""
        f = self.functions
        lowest = np.take_along_axis(looks, values.argmin(1)[:, None, None], 1)[:, 0]
        z, c, error = settle(f, np.concatenate([x, lowest], 1))
        none = np.zeros((len(z), len(f.g))), np.zeros((len(z), len(f.h)))
        return Minima(z, c, *none, error)


def _promising(looks: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Of many points at each x, `count` that are low: valleys where y is one number, else the
    lowest of each part."""
    rows, total, m = looks.shape
    if m == 1:
        order = looks[:, :, 0].argsort(1)
        sorted_ = np.take_along_axis(values, order, 1)
        wide = np.pad(sorted_, ((0, 0), (1, 1)), constant_values=np.inf)
        valley = (sorted_ <= wide[:, :-2]) & (sorted_ <= wide[:, 2:])
        rank = np.where(valley, sorted_, np.inf).argsort(1)[:, :count]
        pick = np.take_along_axis(order, rank, 1)
    else:
        parts = values[:, : total - total % count].reshape(rows, -1, count)
        pick = parts.argmin(1) * count + np.arange(count)
    return np.take_along_axis(looks, pick[:, :, None], 1)


def _different(g: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """How many finite values of each row are not within a distance of the one below."""
    g = np.sort(g, 1)
    far = g[:, 1:] > g[:, :-1] + apart[:, None]
    return np.isfinite(g[:, 0]) + (far & np.isfinite(g[:, 1:])).sum(1)


def _joined(found: Minima, g: np.ndarray, upper, ends: Minima, lost: np.ndarray, f: Functions):
    """All ends of each x, with one more for those that were lost."""
    rows, count = g.shape
    where = np.flatnonzero(lost)
    parts = []
    for old, new in zip(found, ends, strict=True):
        wide = np.empty((rows, count + 1, *old.shape[1:]))
        wide[:, :count] = old.reshape(rows, count, *old.shape[1:])
        wide[:, count] = wide[:, 0]
        wide[where, count] = new
        parts.append(wide.reshape(rows * (count + 1), *old.shape[1:]))
    g = np.concatenate([g, np.full((rows, 1), np.inf)], 1)
    g[where, count] = ends.c[:, LOWER]
    joined = Minima(*parts)
    return joined, g, f.violations(joined.c)[0]
