"""Small bilevel programs at random, and their best values by enumeration."""

import itertools

import numpy as np
from scipy.optimize import linprog

from bilevel import mip


def interdiction(seed: int, items: int = 7) -> tuple[mip.Program, float]:
    """Take items away from a knapsack, within a budget; and the best by all subsets."""
    rng = np.random.default_rng(seed)
    profit, weight, price = (rng.integers(1, 30, items).astype(float) for _ in range(3))
    room, budget = np.floor(weight.sum() / 2), np.floor(price.sum() / 3)
    n, zero, one = items, np.zeros(items), np.eye(items)
    program = mip.Program(
        cost=np.r_[zero, profit],
        rows=np.vstack([np.r_[price, zero], np.r_[zero, weight], np.hstack([one, one])]),
        row_upper=np.r_[budget, room, np.ones(n)],
        upper=np.ones(2 * n),
        integer=np.ones(2 * n, bool),
        follower=np.arange(2 * n) >= n,
        follower_rows=np.arange(n + 2) >= 1,
        follower_cost=np.r_[zero, -profit],
    )
    subsets = np.array(list(itertools.product((0.0, 1.0), repeat=n)))
    packed = subsets[subsets @ weight <= room]
    allowed = subsets[subsets @ price <= budget]
    clash = packed @ allowed.T > 0
    return program, float(np.where(clash, 0, (packed @ profit)[:, None]).max(axis=0).min())


def tolls(seed: int, users: int = 3, routes: int = 4) -> tuple[mip.Program, float]:
    """Tolls on all routes but the last for users with costs of their own, and the best revenue by
    all assignments of users to routes, a linear program each."""
    rng = np.random.default_rng(seed)
    cost, demand = rng.integers(1, 20, (users, routes)), rng.integers(1, 6, users)
    n, free = routes - 1, users * routes
    products = np.zeros((n + free,) * 2)
    for u, r in itertools.product(range(users), range(n)):
        products[n + u * routes + r, r] = products[r, n + u * routes + r] = 1
    program = mip.Program(
        cost=np.zeros(n + free),
        share=-1.0,
        rows=np.hstack([np.zeros((users, n)), np.kron(np.eye(users), np.ones(routes))]),
        row_lower=demand,
        row_upper=demand,
        upper=np.r_[np.full(n, 30.0), np.full(free, np.inf)],
        follower=np.arange(n + free) >= n,
        follower_rows=np.ones(users, bool),
        follower_cost=np.r_[np.zeros(n), cost.ravel()],
        follower_hessian=products,
    )
    best = 0.0
    one = np.eye(routes)[:, :n]
    for choice in itertools.product(range(routes), repeat=users):
        gain = sum(demand[u] * one[r] for u, r in enumerate(choice))
        cheaper = np.vstack([one[r] - one for r in choice])
        room = np.concatenate([cost[u] - cost[u, r] for u, r in enumerate(choice)])
        found = linprog(-gain, cheaper, room, bounds=[(0, 30)] * n)
        best = max(best, -found.fun if found.status == 0 else 0.0)
    return program, -best
