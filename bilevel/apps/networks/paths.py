"""Cheapest paths, and the set of paths that trips may take."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from bilevel.apps.networks.network import Network

LEAST = 1e-12  # the cost of a link without one, which a sparse matrix would forget


class Paths(NamedTuple):
    """Paths as sets of links, each for one pair of the trips."""

    links: csr_array  # a row a path: 1 where it takes a link
    pair: Int[np.ndarray, " paths"]


class Cheapest(NamedTuple):
    cost: Float[np.ndarray, " pairs"]
    paths: Paths  # one a pair, in their order


def cheapest(network: Network, cost: Float[np.ndarray, " links"]) -> Cheapest:
    """The cheapest path of every pair.

    Raises:
        ValueError: a pair has no path.
    """
    n = network
    costs, rows, columns = np.empty(len(n.trips)), [], []
    every = n.start >= n.first_through
    for origin in np.unique(n.origin):
        usable = every | (n.start == origin)
        best = _cheapest_parallel(n, cost, usable)
        shape = (len(n.names),) * 2
        values = np.maximum(cost[best], LEAST)
        graph = csr_array((values, (n.start[best], n.end[best])), shape=shape)
        distance, before = dijkstra(graph, indices=origin, return_predecessors=True)
        link = {
            (int(a), int(b)): i for a, b, i in zip(n.start[best], n.end[best], best, strict=True)
        }
        for pair in np.flatnonzero(n.origin == origin):
            node = int(n.destination[pair])
            costs[pair] = distance[node]
            if not np.isfinite(distance[node]):
                raise ValueError(
                    f"there is no path from {n.names[origin]} to {n.names[node]}, where "
                    f"{n.trips[pair]:g} trips go."
                )
            while node != origin:
                rows.append(pair)
                columns.append(link[int(before[node]), node])
                node = int(before[node])
    shape = (len(n.trips), n.links)
    taken = csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    return Cheapest(costs, Paths(taken, np.arange(len(n.trips))))


def _cheapest_parallel(n: Network, cost, usable) -> Int[np.ndarray, " kept"]:
    """Of links between the same two nodes, the cheapest."""
    kept = np.flatnonzero(usable & np.isfinite(cost))
    order = kept[np.argsort(cost[kept], kind="stable")]
    _, first = np.unique(n.start[order] * len(n.names) + n.end[order], return_index=True)
    return order[first]


def joined(known: Paths | None, new: Paths) -> Paths:
    """Both sets, each path once."""
    if known is None:
        return new
    seen = {_key(known, i) for i in range(len(known.pair))}
    fresh = [i for i in range(len(new.pair)) if _key(new, i) not in seen]
    rows = csr_array(_stack(known.links, new.links[fresh]))
    return Paths(rows, np.concatenate([known.pair, new.pair[fresh]]))


def _stack(a: csr_array, b: csr_array) -> csr_array:
    from scipy.sparse import vstack

    return csr_array(vstack([a, b]))


def _key(paths: Paths, i: int) -> tuple[int, bytes]:
    low, high = paths.links.indptr[i : i + 2]
    return int(paths.pair[i]), np.sort(paths.links.indices[low:high]).tobytes()
