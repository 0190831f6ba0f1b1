"""Small steps of x, the follower answering each: whether one helps, and where they lead."""

import numpy as np

from bilevel.driver.answer import FEASIBLE
from bilevel.global_search.follower import Follower, Responses
from bilevel.global_search.functions import UPPER, Functions
from bilevel.global_search.leader import sensitivity

STEP = 1e-3  # of x, at scale 1 + |x|
DROP = 1e-6  # times 1 + |f|: what such a step gains at a point that is not stationary
SCALES = np.array([0.1, 1.0, 10.0])  # of the steps that are tried at once
ROUNDS = 40
LEAST = 1e-8  # of a step


def can_improve(functions: Functions, follower: Follower, z, dual, force) -> bool:
    """Whether a small step of x lowers the upper loss, y answering: then x is not stationary.

    The follower is asked along the axes and the downhill direction, which holds at kinks, too.
    """
    f, axes = functions, np.eye(functions.n)
    if f.n == 0:
        return False
    here = f.values(z[None])[0, UPPER]
    value, _ = _tried(f, follower, (z, dual, force), axes, np.array([STEP]))
    return bool(value.min() < here - DROP * (1 / f.units[UPPER] + abs(here)))


def descend(functions: Functions, follower: Follower, z, dual, force) -> Responses | None:
    """Where steps of x that lower the upper loss lead, if one does, by search along turning axes.

    Needs no derivative of the follower's answer, so it goes on where that has kinks or jumps.
    """
    f, rng, axes, step = functions, np.random.default_rng(0), np.eye(functions.n), STEP
    here, found = f.values(z[None])[0, UPPER], None
    for _ in range(ROUNDS):
        value, answers = _tried(f, follower, (z, dual, force), axes, step * SCALES)
        k = int(value.argmin())
        if value[k] < here:
            found, here = answers.take([k]), value[k]
            z, dual, force = found.z[0], found.dual[0], found.force[0]
            step *= SCALES[k % len(SCALES)]
        else:
            step *= SCALES[0] ** 2
        if step < LEAST:
            break
        axes = np.linalg.qr(rng.normal(size=(f.n, f.n)))[0]
    return found


def _tried(f: Functions, follower: Follower, point, axes, lengths) -> tuple[np.ndarray, Responses]:
    """The upper loss after steps of x along the axes, both ways, and downhill, and the answers.

    Each direction with all lengths side by side; infinite where a constraint on x does not hold.
    """
    (z, dual, force), n = point, f.n
    D = sensitivity(f, z, dual, force)
    J = f(z[None]).J[0]
    slope = np.nan_to_num(J[UPPER, :n] + J[UPPER, n:] @ D)
    downhill = -slope / (np.linalg.norm(slope) + 1e-300)
    ways = np.concatenate([axes, -axes, downhill[None]])
    steps = (ways[:, None] * lengths[:, None]).reshape(-1, n) * (1 + np.abs(z[:n]).max())
    answers = follower.respond(z[:n] + steps, 2, (z[n:] + steps @ D.T)[:, None])
    upper, _ = f.violations(answers.c)
    value = np.where(answers.ended & (upper <= FEASIBLE), answers.c[:, UPPER], np.inf)
    return np.nan_to_num(value, nan=np.inf), answers
