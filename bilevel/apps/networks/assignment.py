"""User equilibrium: no traveller has a cheaper path.

Link flows v of an equilibrium minimise `Σ_a ∫ cost_a` over flows that make all trips (Beckmann,
McGuire, Winsten. "Studies in the economics of transportation". 1956). Here path flows h >= 0 are
found by a primal-dual interior-point method over a set of paths, to which the cheapest ones are
added until none is missing. A step solves one system of as many equations as there are links.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bilevel.apps.networks.network import Network, travel_time
from bilevel.apps.networks.paths import Paths, cheapest, joined
from bilevel.errors import Failed

GAP = 1e-10  # relative gap of a finished equilibrium
MOST_ROUNDS, MOST_STEPS = 100, 80


class Equilibrium(NamedTuple):
    """Flows at which no path is cheaper than those taken."""

    flows: Float[np.ndarray, " links"]
    costs: Float[np.ndarray, " links"]  # of a traveller, tolls included
    pair_costs: Float[np.ndarray, " pairs"]  # of the cheapest path
    gap: float  # (flows·costs − trips·pair_costs) / flows·costs
    moves: Float[np.ndarray, "links links"]  # projects on changes of flow between paths taken
    paths: Paths  # those taken


class Links(NamedTuple):
    """What a traveller pays on each link: `free (1 + b (v / capacity)^power) + toll`."""

    free: Any
    b: Any
    power: Any
    capacity: Any
    toll: Any
    marginal: bool = False  # in place of the time t, the time t + v t' that a traveller causes

    def cost(self, v):
        """Of a traveller, at flows v."""
        time = travel_time(self.free, self.factor, self.power, self.capacity, v)
        return time + self.toll

    @property
    def factor(self):
        """b; times power + 1 where costs are marginal: (v t)' = free (1 + (power + 1) b ...)."""
        return self.b * (self.power + 1) if self.marginal else self.b

    def slope(self, v):
        """Its derivative."""
        relative, p = v / self.capacity, self.power
        steep = np.where(p > 0, p * np.maximum(relative, 1e-300) ** np.maximum(p - 1, 0), 0.0)
        return self.free * self.factor * steep / self.capacity


def links_of(network: Network, *, toll: Any = 0.0, capacity: Any = None, marginal=False) -> Links:
    """The links of a network, with tolls in units of time, or with other capacities."""
    capacity = network.capacity if capacity is None else np.asarray(capacity)
    toll = np.broadcast_to(np.asarray(toll, float), network.capacity.shape)
    return Links(network.free, network.b, network.power, capacity, toll, marginal)


def total_time(network: Network, flows, capacity=None) -> float:
    """The time that all travellers spend, tolls left out."""
    capacity = network.capacity if capacity is None else capacity
    times = travel_time(network.free, network.b, network.power, capacity, flows)
    return float(flows @ times)


def beckmann(links: Links, flows) -> float:
    """`Σ_a ∫_0^v cost_a`, which an equilibrium minimises."""
    grown = links.factor * (flows / links.capacity) ** links.power / (links.power + 1)
    return float(flows @ (links.free * (1 + grown) + links.toll))


def equilibrium(
    network: Network, links: Links | None = None, *, paths: Paths | None = None, gap: float = GAP
) -> Equilibrium:
    """The user equilibrium; with marginal costs, the flows of least total time.

    Args:
        links: what travellers pay; the network's times when absent.
        paths: to begin with, such as those of a similar network.
        gap: relative gap to reach.

    Raises:
        ValueError: a pair has no path.
        RuntimeError: the gap was not reached, where times do not grow with flow or lie many
            orders of magnitude apart.
    """
    links = links_of(network) if links is None else links
    flows = np.zeros(network.links)
    found = cheapest(network, links.cost(flows))
    known = joined(paths, found.paths)
    best = np.inf
    for _ in range(MOST_ROUNDS):
        flows, h, s = _over_paths(network, links, known)
        costs = links.cost(flows)
        found = cheapest(network, costs)
        spent = flows @ costs
        now = float((spent - network.trips @ found.cost) / spent)
        grown = joined(known, found.paths)
        if now <= gap or (len(grown.pair) == len(known.pair) and now < 1e-6):
            # One of h and s is nearly zero for each path.
            taken = h / network.trips[known.pair] > s / costs.max()
            used = Paths(known.links[taken], known.pair[taken])
            return Equilibrium(flows, costs, found.cost, max(now, 0.0), _moves(network, used), used)
        best, known = min(best, now), grown
    raise Failed(f"the equilibrium's relative gap stays at {best:.1e}; {gap:.0e} is needed.")


def _over_paths(network: Network, links: Links, paths: Paths):
    """Flows, path flows and their reduced costs over a set of paths, by an interior-point method.

    Solves `A cost(Aᵀh) − Eᵀπ = s`, `E h = trips`, `h s = μ` for μ → 0, where A says which links a
    path takes and E sums over the paths of a pair.
    """
    A, pair, trips = paths.links, paths.pair, network.trips

    def summed(values):
        return np.bincount(pair, values, len(trips))

    h = trips[pair] / np.bincount(pair, minlength=len(trips))[pair]
    v = A.T @ h
    cost = A @ links.cost(v)
    least = np.full(len(trips), np.inf)
    np.minimum.at(least, pair, cost)
    s = cost - least[pair] + 0.1 * least[pair] + 1e-12
    pi = 0.9 * least - 1e-12
    mu = h @ s / len(h)
    for _ in range(MOST_STEPS):
        cost, slope = A @ links.cost(v), links.slope(v)
        uneven = np.abs(cost - pi[pair] - s).max() / (1e-300 + np.abs(cost).max())
        least_mu = 1e-13 * (h @ cost) / len(h)  # below it rounding is in the way
        if mu <= least_mu and uneven < 1e-10:
            break
        w = h / s
        r = -(cost - pi[pair]) + mu / h
        missing = trips - summed(h)
        n = summed(w)
        AW = A.multiply(w[:, None]).tocsr()
        M = _pair_sums(AW, pair, len(trips))
        K = (AW.T @ A).toarray() - (M.T @ M.multiply(1 / n[:, None])).toarray()
        right = AW.T @ r + M.T @ ((missing - summed(w * r)) / n)
        dv = np.linalg.solve(np.eye(len(v)) + K * slope, right)
        turned = A @ (slope * dv)
        dpi = (missing - summed(w * (r - turned))) / n
        dh = w * (r - turned + dpi[pair])
        ds = mu / h - s - s / h * dh
        a = _descent(links, A, h, dh, mu, float(-r @ dh), _step(h, dh))
        h, s, pi = h + a * dh, s + min(a, _step(s, ds)) * ds, pi + a * dpi
        h *= (trips / summed(h))[pair]  # what rounding took
        s = np.clip(s, 1e-8 * mu / h, 1e8 * mu / h)
        mu = max(0.1 * mu, 0.5 * least_mu) if a > 0.5 else mu
        v = A.T @ h
    return v, h, s


def _descent(links: Links, A, h, dh, mu: float, slope: float, most: float) -> float:
    """A step at which `Beckmann − μ Σ log h` falls, which a Newton step makes for."""

    def merit(h):
        return beckmann(links, A.T @ h) - mu * np.log(h).sum()

    now, a = merit(h), most
    room = 1e-12 * abs(now)
    for _ in range(40):
        if merit(h + a * dh) <= now + 1e-4 * a * slope + room:
            break
        a /= 2
    return a


def _pair_sums(rows, pair, pairs: int):
    """Rows summed over the paths of each pair."""
    from scipy.sparse import csr_array

    ones = csr_array((np.ones(len(pair)), (pair, np.arange(len(pair)))), shape=(pairs, len(pair)))
    return (ones @ rows).tocsr()


def _step(values, change) -> float:
    """The longest step that keeps values above zero."""
    down = change < 0
    return float(min(1.0, 0.995 * np.min(-values[down] / change[down], initial=np.inf)))


def _moves(network: Network, paths: Paths) -> Float[np.ndarray, "links links"]:
    """The projection on the span of differences between paths of the same pair."""
    rows, pair = paths.links, paths.pair
    count = np.maximum(np.bincount(pair, minlength=len(network.trips)), 1)
    M = _pair_sums(rows, pair, len(network.trips))
    spread = (rows.T @ rows).toarray() - (M.T @ M.multiply(1 / count[:, None])).toarray()
    values, vectors = np.linalg.eigh(spread)
    kept = vectors[:, values > 1e-9 * max(1.0, values[-1])]
    return kept @ kept.T
