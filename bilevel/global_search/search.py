"""The global search of a small problem: sample, answer, polish, and check each candidate."""

import time
from typing import NamedTuple

import numpy as np

from bilevel.driver.answer import FEASIBLE
from bilevel.global_search.candidates import CHECKS, Candidate, compared, measured, promising
from bilevel.global_search.descent import DROP, can_improve, descend
from bilevel.global_search.follower import Follower, Responses
from bilevel.global_search.functions import LOWER, UPPER, Functions
from bilevel.global_search.interior import minimise
from bilevel.global_search.leader import Cut, polish, refine, sensitivity
from bilevel.global_search.rays import lower_fall, upper_ray
from bilevel.global_search.region import Region

SAMPLES = 96  # points x at which the follower is asked
GRID = {1: 32, 2: 6}  # further ones a side, for that many entries of x
STARTS = 8  # of the follower at each
POLISHED = 12  # of the best samples
AT_ONCE = 4  # of them, between two checks
MANY = 40  # unknowns, multipliers included, beyond which it is half as many
IDLE = 3  # rounds of these without a better candidate, and no more are polished
ROUNDS = 4  # of cuts
TIGHT = 1e-9  # times the scale of the lower loss: a follower's gap that is aimed at
SAME = 1e-8  # relative: upper losses this close are equal, and the smaller gap decides
EXACT = 1e-15  # times that scale: a gap that is rounding
SHARPER = 1e-3  # times a candidate's gap: what is left of it where it is refined
NEAR = 0.1  # times 1 + |z|: candidates this close are of one kind
LAST = 8  # best candidates that are refined, and whose follower is looked at along rays
DESCENTS = 2  # of x from one that is not stationary


class SearchResult(NamedTuple):
    """What the search ends with."""

    best: Candidate
    history: list[dict[str, float]]
    starts: int  # of the follower, in all
    candidates: int  # that were checked
    traps: int  # of these, points where the follower's conditions held and it had a better answer
    stationary: bool  # no small step of x from the best lowers the upper loss
    ray: np.ndarray | None  # a direction of x along which the upper loss falls for ever


class Search:
    """One search; `run` does it all."""

    def __init__(self, functions: Functions):
        self.f = functions
        self.region = Region(functions)
        self.follower = Follower(functions, self.region)
        self.checked: list[Candidate] = []
        self.traps = 0
        self.bound = -np.inf  # of the upper loss over all points that satisfy the constraints
        self._treated: set[int] = set()
        self.cuts: list[Cut] = []
        self.history: list[dict[str, float]] = []
        self.begin = time.monotonic()

    def run(self) -> SearchResult:
        samples = self.sample()
        self.note("sampled")
        self.polish_until_idle(promising(self.f, samples, POLISHED))
        for _ in range(ROUNDS):
            again = self.cut()
            if not again:
                break
            self.check(again)
            self.note("cut")
        self.zoom(samples)
        if self.best() is None:
            self.checked.append(measured(self.f, self.follower, self.f.z0))
        stationary = self.finish()
        best = self.best()
        assert best is not None
        fall = upper_ray(self.f, self.follower, *best[:3]) if best.passes() else None
        self.note("finished")
        counts = self.follower.starts, len(self.checked), self.traps
        return SearchResult(best, self.history, *counts, stationary, fall and fall[0])

    # --- samples --------------------------------------------------------------------------------

    def sample(self) -> Responses:
        """Points of the joint feasible set, those that the leader would like best, and answers."""
        f = self.f
        everything = {
            "free": slice(None),
            "inequalities": np.concatenate([f.G, f.g]),
            "equations": np.concatenate([f.H, f.h]),
        }
        drawn = self.region.draw(SAMPLES - 1) if f.n else self.region.draw(8)
        near = minimise(f, np.concatenate([f.z0[None], drawn]), cost=None, **everything)
        liked = minimise(f, near.z[:32], cost=UPPER, **everything)
        upper, lower = f.violations(liked.c)
        ended = (np.maximum(upper, lower) <= FEASIBLE) & (liked.error <= 1e-5)
        if ended.any() and np.isfinite(liked.c[:, UPPER]).all():
            self.bound = float(liked.c[:, UPPER].min())
        z = np.concatenate([f.z0[None], near.z, liked.z, self.region.grid(GRID.get(f.n, 0))])
        ok = np.isfinite(z).all(1) & (np.abs(z).max(1) < 1e6)
        z = z[ok] if ok.any() else f.z0[None]
        _, first = np.unique(np.round(z[:, : f.n], 7), axis=0, return_index=True)
        z = z[np.sort(first)]
        answers = self.follower.respond(z[:, : f.n], STARTS, z[:, None, f.n :])
        return answers.take(answers.ended)

    # --- candidates -----------------------------------------------------------------------------

    def polish_until_idle(self, starts: Responses) -> None:
        """Polish a few at a time, until some rounds have found nothing better."""
        idle, last = 0, np.inf
        multipliers = len(self.f.g) + len(self.f.h)
        at_once = AT_ONCE if self.f.size + multipliers <= MANY else AT_ONCE // 2
        for i in range(0, len(starts.z), at_once):
            some = starts.take(slice(i, i + at_once))
            part = zip(some.z, some.dual, some.force, strict=True)
            self.check([polish(self.f, *start) for start in part])
            self.note("polished")
            best = self.best()
            upper = best.upper if best is not None and best.passes(TIGHT) else np.inf
            idle = 0 if upper < last - 1e-5 * (1 + abs(upper)) or upper == np.inf else idle + 1
            last = min(last, upper)
            if idle == IDLE or last <= self.bound + 1e-5 * (1 + abs(self.bound)):
                break

    def check(self, points, every: bool = False) -> None:
        """Ask the follower at each candidate's x, from many starts, in one call for all.

        Args:
            every: also candidates that are almost the same.
        """
        n = self.f.n
        kept = [p for p in points if np.isfinite(p[0]).all() and np.abs(p[0]).max() < 1e7]
        if not kept:
            return
        z = np.stack([p[0] for p in kept])
        c = self.f(z).c
        upper, lower = self.f.violations(c)
        # One answer for candidates that are the same, and only for those that are feasible.
        order = sorted(
            range(len(kept)), key=lambda i: (max(upper[i], lower[i]) > FEASIBLE, c[i, UPPER])
        )
        seen: list[int] = []
        for i in order:
            same = not every and any(np.allclose(z[i], z[j], rtol=1e-5, atol=1e-6) for j in seen)
            if not same:
                seen.append(i)
        seen = [i for i in seen if max(upper[i], lower[i]) <= FEASIBLE] or seen[:1]
        answers = self.follower.respond(z[seen][:, :n], CHECKS, z[seen][:, None, n:])
        for k, i in enumerate(seen):
            self._record(kept[i], c[i], (upper[i], lower[i]), answers.take([k]))

    def _record(self, point, c, violation, answer: Responses) -> None:
        found = compared(self.f, point, c, violation, answer)
        self.traps += found.feasible and not found.passes()
        self.checked.append(found)
        if found.feasible and not found.passes(TIGHT) and answer.ended[0]:
            upper, lower = self.f.violations(answer.c)
            own = answer.z[0], answer.dual[0], answer.force[0]
            self.checked.append(compared(self.f, own, answer.c[0], (upper[0], lower[0]), answer))

    def cut(self):
        """New starts from candidates that look better than the best and are not the follower's."""
        best = self.best()
        bar = (
            best.upper - 1e-6 * (1 + abs(best.upper))
            if best is not None and best.passes()
            else np.inf
        )
        wrong = [c for c in self.checked if c.feasible and not c.passes(TIGHT) and c.upper < bar]
        wrong = [c for c in wrong if np.isfinite(c.better).all() and id(c) not in self._treated]
        wrong.sort(key=lambda c: c.upper)
        found = []
        for candidate in wrong[:4]:
            self._treated.add(id(candidate))
            n = self.f.n
            x = candidate.z[:n]
            answer = self.follower.respond(x[None], 16, candidate.better[None, None])
            if not answer.ended[0]:
                continue
            D = sensitivity(self.f, answer.z[0], answer.dual[0], answer.force[0])
            self.cuts.append(Cut(x, answer.z[0, n:], D))
            cuts = tuple(self.cuts[-3:])
            found.append(polish(self.f, answer.z[0], answer.dual[0], answer.force[0]))
            found.append(polish(self.f, candidate.z, candidate.dual, candidate.force, cuts))
            found.append(polish(self.f, answer.z[0], answer.dual[0], answer.force[0], cuts))
        return found

    # --- in few dimensions ----------------------------------------------------------------------

    def zoom(self, samples: Responses) -> None:
        """Sampled answers that beat all candidates are refined by samples ever closer to them."""
        f = self.f
        upper, _ = f.violations(samples.c)
        ok = np.flatnonzero(upper <= FEASIBLE)
        if not len(ok):
            return
        i = ok[samples.c[ok, UPPER].argmin()]
        best = self.best()
        bar = best.upper if best is not None and best.passes(TIGHT) else np.inf
        value = samples.c[i, UPPER]
        if value >= bar - 1e-4 * (1 + abs(bar)):
            return
        point = samples.take([i])
        radius = np.ptp(samples.z[ok, : f.n], axis=0) / max(2, len(ok) ** (1 / max(f.n, 1))) * 2
        if f.n:
            rng = np.random.default_rng(0)
            for _ in range(24):
                x = point.z[0, : f.n] + radius * rng.uniform(-1, 1, (32, f.n))
                y = np.repeat(point.z[:, None, f.n :], 32, 0)
                near = self.follower.respond(x, 4, y)
                outside, _ = f.violations(near.c)
                merit = np.where(near.ended & (outside <= FEASIBLE), near.c[:, UPPER], np.inf)
                k = merit.argmin()
                if merit[k] < point.c[0, UPPER]:
                    point = near.take([k])
                    radius = radius * 0.7
                else:
                    radius = radius * 0.4
                if radius.max(initial=0) < 1e-7:
                    break
        self.check([(point.z[0], point.dual[0], point.force[0])])
        self.check([polish(f, point.z[0], point.dual[0], point.force[0])])
        self.note("zoomed")

    # --- the end --------------------------------------------------------------------------------

    def finish(self) -> bool:
        """Refine the best candidate; give it up where its follower has no minimum, for the next.

        A gap may be what makes a candidate look good, however small (in a flat quartic, y is off by
        its fourth root). Such a candidate goes, and those close to it, where its program, solved to
        rounding, or its follower's answer at the same x, has none. Where small steps of x help,
        they are followed.

        Returns:
            Whether the last one is stationary: no small step of x lowers the upper loss.
        """
        last, descents = np.inf, 0
        for _ in range(LAST):
            best = self.best()
            if best is None or not best.passes():
                return False
            sharp, best = self.sharpen(best), self.best()
            assert best is not None
            if best.upper < sharp.upper - SAME * (1 + abs(sharp.upper)):
                continue
            if (way := lower_fall(self.f, self.region, best.z)) is not None:
                given_up = best._replace(falls=way)
                self.checked = [given_up if c is best else c for c in self.checked]
                continue
            # What a descent gained may have been gaps of the follower's answers, all of it.
            gained = best.upper < last - DROP * (1 + abs(best.upper))
            if not gained or not can_improve(self.f, self.follower, *best[:3]):
                return True
            # Where f falls for ever, a descent would only hide it, far away.
            falls = upper_ray(self.f, self.follower, *best[:3]) is not None
            if falls or descents == DESCENTS:
                return False
            if not self.descend(best):
                return True
            last, descents = best.upper, descents + 1
        best = self.best()
        if (
            best is not None
            and best.passes()
            and lower_fall(self.f, self.region, best.z) is not None
        ):
            self.checked = [c._replace(best=-np.inf) if c.passes() else c for c in self.checked]
        return False

    def sharpen(self, best: Candidate) -> Candidate:
        """The best of a candidate and its refined forms; those near it that live on a gap go."""
        count = len(self.checked)
        self.check([refine(self.f, *best[:3], at_x=at_x) for at_x in (False, True)], every=True)
        bar = max(EXACT, SHARPER * best.relative_gap)
        near = [c for c in self.checked[count:] if c.passes(bar) and _is_near(c, best)]
        near += [best] if best.passes(bar) or not near else []
        sharp = min(near, key=_upper_loss)
        bar = max(bar, sharp.relative_gap)
        self.checked = [c for c in self.checked if c.relative_gap <= bar or not _is_near(c, sharp)]
        return sharp

    def descend(self, best: Candidate) -> bool:
        """Follow small steps of x down from the best candidate; whether a better one was found."""
        found = descend(self.f, self.follower, *best[:3])
        if found is not None:
            point = found.z[0], found.dual[0], found.force[0]
            self.check([point, polish(self.f, *point)], every=True)
            self.note("descended")
        return self.best() is not best

    def best(self) -> Candidate | None:
        """The least upper loss among those that pass; a tight gap is preferred to a loose one."""
        tight = [c for c in self.checked if c.passes(TIGHT)]
        loose = [c for c in self.checked if c.passes()]
        feasible = [c for c in self.checked if c.feasible]
        if tight and loose:
            a, b = min(tight, key=_upper_loss), min(loose, key=_upper_loss)
            if b.upper < a.upper - 1e-4 * (1 + abs(a.upper)):
                return b
            equal = [c for c in tight if c.upper <= a.upper + SAME * (1 + abs(a.upper))]
            return min(equal, key=lambda c: max(c.relative_gap, *c.violation))
        if loose:
            return min(loose, key=_upper_loss)
        if feasible:
            return min(feasible, key=lambda c: (c.relative_gap, c.falls is None))
        return min(self.checked, key=lambda c: max(c.violation), default=None)

    def note(self, stage: str) -> None:
        best = self.best()
        self.history.append(
            {
                "step": len(self.history),
                "seconds": time.monotonic() - self.begin,
                "upper": best.upper * self.f.units[UPPER] if best else np.nan,
                "lower_gap": best.gap * self.f.units[LOWER] if best else np.nan,
                "violation": max(best.violation) if best else np.nan,
            }
        )


def _upper_loss(candidate: Candidate) -> float:
    return candidate.upper


def _is_near(a: Candidate, b: Candidate) -> bool:
    return bool(np.abs(a.z - b.z).max(initial=0) <= NEAR * (1 + np.abs(b.z).max(initial=0)))
