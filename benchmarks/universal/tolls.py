"""Tolls on a grid of streets, with a best revenue that is known.

Drivers go from the left to the right of a grid, one commodity on some of its rows; on each such row
one street takes a toll. Without tolls commodity k pays `γ_k(0)`, without the toll streets `γ_k(∞)`:
no toll earns more than the sum of `γ_k(∞) − γ_k(0)` (Labbé, Marcotte, Savard 1998), and each toll
at its own difference attains it here, which is checked.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

import bilevel as bl
from benchmarks.universal.case import Case

SIZES = {10: ((3, 2), [1]), 100: ((6, 6), [1, 4]), 1000: ((19, 19), [4, 14])}
TIE = 1e-7  # of a toll: at equal costs drivers take the toll street (the leader's favourite)


class Grid(NamedTuple):
    tail: np.ndarray  # (arcs,)
    head: np.ndarray
    cost: np.ndarray
    nodes: int
    tolled: np.ndarray  # (tolls,): arcs
    trips: np.ndarray  # (commodities, 2): from, to


def grid(rows: int, columns: int, at: np.ndarray, rng) -> Grid:
    """Streets to the right, and both ways between rows; commodities on the rows `at`."""
    number = np.arange(rows * columns).reshape(rows, columns)
    right = np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()])
    down = np.stack([number[:-1].ravel(), number[1:].ravel()])
    tail, head = np.concatenate([right, down, down[::-1]], axis=1)
    cost = np.concatenate(
        [
            np.where(np.isin(right[0] // columns, at), 1.0, rng.uniform(1.2, 1.5, right.shape[1])),
            rng.uniform(0.4, 0.8, 2 * down.shape[1]),
        ]
    )
    middle = columns // 2 - 1
    tolled = np.array([np.flatnonzero(right[0] == number[r, middle])[0] for r in at])
    return Grid(tail, head, cost, number.size, tolled, np.stack([number[at, 0], number[at, -1]], 1))


def flows(g: Grid, tolls) -> np.ndarray:
    """Each commodity on its shortest path, (commodities, arcs)."""
    paid = g.cost.copy()
    paid[g.tolled] += (1 - TIE) * np.asarray(tolls)
    graph = csr_array((paid, (g.tail, g.head)), shape=(g.nodes,) * 2)
    _, before = dijkstra(graph, indices=g.trips[:, 0], return_predecessors=True)
    arc = {pair: i for i, pair in enumerate(zip(g.tail.tolist(), g.head.tolist(), strict=True))}
    found = np.zeros((len(g.trips), len(g.cost)))
    for k, (source, sink) in enumerate(g.trips):
        while sink != source:
            found[k, arc[int(before[k, sink]), int(sink)]] = 1
            sink = before[k, sink]
    return found


def best_revenue(g: Grid) -> float:
    """The sum of `γ_k(∞) − γ_k(0)`, attained.

    Raises:
        ValueError: it is not.
    """
    free, none = (flows(g, np.full(len(g.tolled), t)) @ g.cost for t in (0.0, 1e6))
    earned = np.sum(flows(g, none - free)[:, g.tolled] @ (none - free))
    if abs(earned - np.sum(none - free)) > 1e-9:
        raise ValueError("the bound on the revenue of this grid is not attained.")
    return float(earned)


def tolls(n: int, rng) -> Case:
    """About n streets; a problem in x (tolls) and y (flows of every commodity on every arc)."""
    side, at = SIZES[n]
    g = grid(*side, np.array(at), rng)
    count, arcs = len(g.trips), len(g.cost)
    balance = np.zeros((g.nodes, arcs))
    balance[g.tail, np.arange(arcs)], balance[g.head, np.arange(arcs)] = 1, -1
    goes = np.zeros((count, g.nodes))
    goes[np.arange(count), g.trips[:, 0]], goes[np.arange(count), g.trips[:, 1]] = 1, -1

    def upper(x, y, batch):
        return -jnp.sum(y.reshape(count, arcs)[:, g.tolled] @ x)

    def lower(x, y, batch):
        return jnp.sum(y.reshape(count, arcs) @ jnp.asarray(g.cost).at[g.tolled].add(x))

    rows = np.kron(np.eye(count), balance[:-1])  # the last node's balance follows from the others
    problem = bl.Problem(
        upper,
        lower,
        upper_set=bl.sets.Box(0.0, 10.0),
        lower_set=(bl.sets.Box(0.0, np.inf), bl.sets.Affine(rows, goes[:, :-1].ravel())),
    )
    x0 = jnp.full(len(g.tolled), 0.1)
    y0 = jnp.asarray(flows(g, x0).ravel())

    def answer(x):
        return flows(g, x).ravel()

    return Case("tolls on a grid", n, problem, x0, y0, -best_revenue(g), answer)
