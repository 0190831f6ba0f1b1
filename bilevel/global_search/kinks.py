"""Going down without derivatives, for lower losses with kinks and for what Newton steps lost."""

import numpy as np

from bilevel.driver.answer import FEASIBLE
from bilevel.global_search.functions import LOWER, Functions
from bilevel.global_search.interior import FAR

STEPS = 160
LEAST = 1e-10  # of a step, at scale 1 + |y|


def settle(functions: Functions, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compass search in y from each row of z, over an orthogonal basis that turns at random.

    Steps grow where the lower loss falls and shrink where it does not. Points stay feasible, and
    on the equations that are linear in y.

    Returns:
        Where each row ended, all functions there, and an error: zero where the steps became tiny,
        infinite where they did not (the loss kept falling).
    """
    f, n = functions, functions.n
    z = z.copy()
    c = f.values(z)
    basis, rng = _along_equations(f, z), np.random.default_rng(0)
    k = basis.shape[1]
    step = np.full(len(z), 0.1)
    if k == 0:
        return z, c, np.zeros(len(z))
    for _ in range(STEPS):
        turn = np.linalg.qr(rng.normal(size=(k, k)))[0] if rng.random() < 0.7 else np.eye(k)
        ways = np.concatenate([turn, -turn]) @ basis.T  # ways x m
        size = step * (1 + np.abs(z[:, n:]).max(1, initial=0))
        tries = np.repeat(z[:, None], len(ways), 1)
        tries[:, :, n:] += size[:, None, None] * ways
        there = f.values(tries.reshape(-1, f.size))
        allowed = np.maximum(f.violations(c)[1], 1e-9)
        outside = f.violations(there)[1].reshape(len(z), -1)
        value = there[:, LOWER].reshape(len(z), -1)
        good = (outside <= np.minimum(allowed, FEASIBLE)[:, None]) & ~np.isnan(value)
        value = np.where(good, value, np.inf)
        best = value.argmin(1)
        row = np.arange(len(z))
        falls = value[row, best] < c[:, LOWER]
        z[falls] = tries[row, best][falls]
        c[falls] = there.reshape(len(z), len(ways), -1)[row, best][falls]
        step = np.where(falls, np.minimum(2 * step, 4.0), step / 2)
        moving = (step > LEAST) & (np.abs(z[:, n:]).max(1) < FAR)
        if not moving.any():
            break
        step = np.where(step > LEAST, step, LEAST)
    ended = (step <= 1e-7) & (np.abs(z[:, n:]).max(1) < FAR)
    return z, c, np.where(ended, 0.0, np.inf)


def _along_equations(f: Functions, z: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the y that the equations leave free; none where they are curved."""
    if not len(f.h):
        return np.eye(f.m)
    if not f.straight[f.h].all():
        return np.zeros((f.m, 0))
    E = f(z[:1]).J[0][f.h][:, f.n :]
    _, sizes, V = np.linalg.svd(E)
    rank = int((sizes > 1e-9 * max(sizes.max(initial=0), 1e-300)).sum())
    return V[rank:].T
