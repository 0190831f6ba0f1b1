"""Whether a loss falls for ever on the way to infinity: then it has no minimum."""

import numpy as np
from scipy.optimize import linprog, nnls

from bilevel.driver.answer import FEASIBLE
from bilevel.global_search.follower import INSIDE, Follower
from bilevel.global_search.functions import LOWER, UPPER, Functions
from bilevel.global_search.interior import minimise
from bilevel.global_search.leader import sensitivity
from bilevel.global_search.region import Region

FAR = 10.0 ** np.arange(0, 9)  # lengths of a ray, at scale 1 + |y|
NEAR = np.array([0.03, 0.1, 0.3, 1.0, 3.0, 10.0])  # where its slope is looked at
DECADES = 10.0 ** np.arange(0, 5)  # lengths along an axis, the other entries of y following
MOST_AXES = 8  # along which valleys are looked for
SURE = 1e-10  # times the scale of the lower loss: what each decade gains in a valley without end
NEXT = np.array([0.3, 1.0, 3.0])  # where z is large already
AWAY = np.array([1e1, 1e3, 1e5])  # lengths of a ray of x


def lower_fall(functions: Functions, region: Region, z: np.ndarray) -> np.ndarray | None:
    """A direction of y in which the lower loss falls for ever: along a ray, or in a valley."""
    way = lower_ray(functions, z)
    return lower_valley(functions, region, z) if way is None else way


def lower_ray(functions: Functions, z: np.ndarray) -> np.ndarray | None:
    """A direction of y from z along which the lower loss never stops to fall, if one is found.

    Looks along the axes, some random directions and the downhill one, each moved into the
    directions that the constraints linear in y leave open. A ray counts where the loss ends lower
    than at z and still falls between the last decades, or where it falls from z on so gently that
    z passes for a minimum (`exp(−y)`), and never turns.
    """
    f, n, m = functions, functions.n, functions.m
    c, J, _ = f(z[None]).at(0)
    if not np.isfinite(J[LOWER]).all():
        return None
    straight = [k for k in f.g if f.straight[k]], [k for k in f.h if f.straight[k]]
    rng = np.random.default_rng(0)
    tries = [np.eye(m), -np.eye(m), rng.normal(size=(4 * m, m)), -J[LOWER, None, n:]]
    ways = recession(np.concatenate(tries), J[straight[0]][:, n:], J[straight[1]][:, n:])
    if not len(ways):
        return None
    size = 1 + np.abs(z[n:]).max(initial=0)
    along = ways[:, None] * size * FAR[:, None]
    points = _points(z, along, n)
    there = f.values(points.reshape(-1, f.size))
    inside = f.violations(there)[1].reshape(len(ways), -1) <= FEASIBLE * (1 + FAR * 1e-6)
    value = there[:, LOWER].reshape(len(ways), -1)
    known = inside & ~np.isnan(value)
    reach = np.cumprod(known, 1).sum(1)  # decades until the ray leaves the set
    tol = 1e-9 * float(f.scale(c[LOWER]))
    for way, values, last in zip(ways, value, reach, strict=True):
        if last == len(FAR) and _keeps_falling(values, c[LOWER], tol):
            return way
    gentle = _gently_falling(f, z, ways[reach == len(FAR)], value[reach == len(FAR)])
    return gentle


def lower_valley(functions: Functions, region: Region, z: np.ndarray) -> np.ndarray | None:
    """An axis of y along which a valley of the lower loss falls for ever, if one is found.

    A valley may be curved, as that of `y1` over `y1 y2 >= 1`, where no straight ray falls. One
    entry of y is held further and further away, and the others minimise the lower loss. Looks from
    z along the axes that are not bounded, where y has 2 to 8 entries.
    """
    f, n, m = functions, functions.n, functions.m
    size = 1 + np.abs(z[n:]).max(initial=0)
    for j in range(n, f.size) if 1 < m <= MOST_AXES else ():
        others = np.array([k for k in range(n, f.size) if k != j])
        for side in (1.0, -1.0):
            if np.isfinite(region.hi[j] if side > 0 else region.lo[j]):
                continue
            points = np.repeat(z[None], len(DECADES), 0)
            points[:, j] += side * size * DECADES
            found = minimise(f, points, others, f.g, f.h, cost=LOWER)
            inside = f.violations(found.c)[1] <= INSIDE
            value = np.concatenate([f.values(z[None])[:, LOWER], found.c[:, LOWER]])
            drops = value[:-1] - value[1:]
            if inside.all() and (drops > SURE * f.scale(value[0])).all():
                return side * np.eye(m)[j - n]
    return None


def _keeps_falling(values: np.ndarray, start: float, tol: float) -> bool:
    with np.errstate(invalid="ignore"):
        ends = values[-1] < start - tol and values[-1] <= values.min()
        if not ends:
            return False
        if np.isneginf(values[-1]):
            return True
        return bool(values[-1] < values[-3] - tol * 1e-3)


def _gently_falling(f: Functions, z, ways, values) -> np.ndarray | None:
    """A way whose slope stays negative and decays: the end of a tail, not of a valley.

    Such slopes may be smaller than any tolerance. Rounding does not make them decay point by point.
    """
    if not len(ways):
        return None
    n, size = f.n, 1 + np.abs(z[f.n :]).max(initial=0)
    points = _points(z, ways[:, None] * size * NEAR[:, None], n)
    J = f(points.reshape(-1, f.size)).J[:, LOWER, n:].reshape(len(ways), len(NEAR), -1)
    slopes = np.einsum("kti,ki->kt", J, ways)
    decays = (slopes[:, 1:] >= 0.98 * slopes[:, :-1]).all(1) & (slopes <= 0).all(1)
    never_rises = (values <= values[:, :1]).all(1)
    tail = (slopes[:, :3] < 0).all(1) & decays & never_rises
    return ways[tail.argmax()] if tail.any() else None


def upper_ray(
    functions: Functions, follower: Follower, z: np.ndarray, dual: np.ndarray, force: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """A direction of x along which the upper loss falls for ever, y answering, and where it got.

    The follower is asked at three distances: along the axes, downhill, and on from the start.
    """
    f, n = functions, functions.n
    if n == 0:
        return None
    D = sensitivity(f, z, dual, force)
    c, J, _ = f(z[None]).at(0)
    slope = J[UPPER, :n] + J[UPPER, n:] @ D
    tries = np.concatenate([np.eye(n), -np.eye(n), -np.nan_to_num(slope)[None]])
    own = np.abs(J[:, n:]).max(1, initial=0) == 0
    straight = [[k for k in rows if f.linear[k] and own[k]] for rows in (f.G, f.H)]
    ways = recession(tries, J[straight[0]][:, :n], J[straight[1]][:, :n])
    dz = np.concatenate([ways.reshape(-1, n), ways.reshape(-1, n) @ D.T], 1)
    # Where rows tie x and y: the direction from the start to here, and downhill in both at once.
    rows = [[k for k in part if f.linear[k]] for part in ([*f.G, *f.g], [*f.H, *f.h])]
    both = recession(np.stack([z - f.z0, -J[UPPER]]), J[rows[0]], J[rows[1]])
    both = np.concatenate([both, _on_this_piece(f, z, dual, force)])
    dz = np.concatenate([dz, both[np.linalg.norm(both[:, :n], axis=1) > 1e-6]])
    if not len(dz):
        return None
    dz /= np.linalg.norm(dz[:, :n], axis=1, keepdims=True)
    ways = dz[:, :n]
    size = 1 + np.abs(z).max(initial=0)
    t = size * (AWAY if size < 100 else NEXT)
    guess = (z + dz[:, None] * t[:, None]).reshape(-1, f.size)
    answers = follower.respond(guess[:, :n], 2, guess[:, None, n:])
    upper, _ = f.violations(answers.c)
    known = (answers.ended & (upper <= FEASIBLE)).reshape(len(ways), -1)
    value = np.where(known, answers.c[:, UPPER].reshape(known.shape), np.nan)
    start = c[UPPER]
    for way, values in zip(ways, value, strict=True):
        with np.errstate(invalid="ignore"):
            drops = values - np.concatenate([[start], values[:-1]])
        tol = 1e-6 * (1 / f.units[UPPER] + abs(start))
        if (drops < 0).all() and values[-1] < start - 1e3 * tol and drops[-1] < -tol:
            return way, float(values[-1])
    return None


def _on_this_piece(f: Functions, z, dual, force) -> np.ndarray:
    """The steepest direction in which the same lower inequalities stay active, by a program."""
    w = f.weights(1)
    w[0, LOWER], w[0, f.g], w[0, f.h] = 1.0, dual, force
    c, J, W = f(z[None], w).at(0)
    active = f.g[dual > -c[f.g]]
    below = [k for k in [*f.G, *f.g] if f.linear[k]]
    level = J[[k for k in [*f.H, *f.h, *active] if f.linear[k]]]
    E = np.concatenate([W[f.n :], level])
    given = {"A_ub": J[below], "b_ub": np.zeros(len(below))} if below else {}
    found = linprog(J[UPPER], **given, A_eq=E, b_eq=np.zeros(len(E)), bounds=(-1, 1))
    falls = found.status == 0 and found.fun < -1e-9
    return found.x[None] if falls else np.zeros((0, f.size))


def recession(tries: np.ndarray, A: np.ndarray, E: np.ndarray) -> np.ndarray:
    """Directions moved to the nearest `d` with `A d <= 0, E d = 0`, as unit vectors; no repeats."""
    found: list[np.ndarray] = []
    cone = np.concatenate([A, E, -E])
    cone = cone[np.abs(cone).max(1, initial=0) > 0]
    for d in tries / np.maximum(np.linalg.norm(tries, axis=1, keepdims=True), 1e-300):
        if len(cone):
            try:
                d = d - cone.T @ nnls(cone.T, d)[0]
            except RuntimeError:  # too many iterations
                continue
        length = np.linalg.norm(d)
        if length < 1e-6:
            continue
        d = d / length
        d[np.abs(d) < 1e-12] = 0
        if not any(np.abs(d - other).max() < 1e-6 for other in found):
            found.append(d)
    return np.array(found).reshape(-1, tries.shape[1])


def _points(z: np.ndarray, along: np.ndarray, n: int) -> np.ndarray:
    points = np.broadcast_to(z, (*along.shape[:2], len(z))).copy()
    points[:, :, n:] += along
    return points
