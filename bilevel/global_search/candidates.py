"""A point of a small problem beside the follower's answer at the same x."""

from typing import NamedTuple

import numpy as np

from bilevel.driver.answer import FEASIBLE, GAP
from bilevel.global_search.follower import Follower, Responses
from bilevel.global_search.functions import LOWER, UPPER, Functions

CHECKS = 64  # starts of the follower when a candidate is checked


class Candidate(NamedTuple):
    """A point and what its check found; losses as `Functions` divides them."""

    z: np.ndarray
    dual: np.ndarray
    force: np.ndarray
    upper: float  # F
    lower: float  # f
    best: float  # the least lower loss found at this x
    better: np.ndarray  # the y where it was
    violation: tuple[float, float]  # of the upper and the lower constraints
    scale: float  # what the gap is compared with
    worst: float  # the largest upper loss among answers that are as good as the best
    minima: int  # different values of the lower loss where the starts ended
    falls: np.ndarray | None = None  # a direction of y along which the lower loss never ends

    @property
    def gap(self) -> float:
        known = np.isfinite(self.best) and self.falls is None
        return max(self.lower - self.best, 0.0) if known else np.inf

    @property
    def relative_gap(self) -> float:
        return self.gap / self.scale

    @property
    def feasible(self) -> bool:
        return max(self.violation) <= FEASIBLE

    def passes(self, tol: float = GAP) -> bool:
        return self.feasible and self.relative_gap <= tol


def measured(functions: Functions, follower: Follower, z: np.ndarray) -> Candidate:
    """A point that came from elsewhere, checked."""
    c = functions(z[None]).c
    upper, lower = functions.violations(c)
    n = functions.n
    answer = follower.respond(z[None, :n], CHECKS, z[None, None, n:])
    none = np.zeros(len(functions.g)), np.zeros(len(functions.h))
    return compared(functions, (z, *none), c[0], (upper[0], lower[0]), answer)


def compared(functions: Functions, point, c, violation, answer: Responses) -> Candidate:
    """A point (z, λ, μ) with its values, beside the follower's answer at the same x."""
    mine, best, better = float(c[LOWER]), float(answer.lower[0]), answer.z[0, functions.n :]
    if violation[1] <= FEASIBLE and mine < best:
        better = point[0][functions.n :]
        # Where no start ended in a minimum, y itself is no proof of one.
        best = min(mine, best) if np.isfinite(best) else best
    return Candidate(
        *point,
        upper=float(c[UPPER]),
        lower=mine,
        best=best,
        better=better,
        violation=(float(violation[0]), float(violation[1])),
        scale=float(functions.scale(np.asarray(mine))),
        worst=max(float(c[UPPER]), float(answer.worst[0])),
        minima=int(answer.minima[0]),
    )


def promising(functions: Functions, samples: Responses, count: int) -> Responses:
    """The best samples by a merit of value and violation, and a few far from each other."""
    if not len(samples.z):
        return samples
    upper, _ = functions.violations(samples.c)
    value = samples.c[:, UPPER]
    spread = np.median(np.abs(value - np.median(value))) + 1e-9
    order = []
    for weight in (0.0, 1.0, 100.0, np.inf):
        merit = upper + 1e-9 * value if weight == np.inf else value / spread + weight * upper
        order.append(np.argsort(merit, kind="stable"))
    x = samples.z[:, : functions.n] / (1 + np.abs(functions.z0[: functions.n]))
    far = [int(order[-1][0])]
    while len(far) < min(4, len(x)):
        distance = np.min([np.linalg.norm(x - x[i], axis=1) for i in far], axis=0)
        far.append(int(distance.argmax()))
    picked: list[int] = []
    turn = 0
    while len(picked) < min(count, len(x)) and turn < 4 * len(x):
        i = int(order[turn % 4][turn // 4])
        picked += [i] if i not in picked else []
        turn += 1
    return samples.take(np.array(list(dict.fromkeys(picked + far))))
