"""Tolls on 20 of 1000 streets with 100 commodities: the revenue, a proven gap, and its check.

`python -m benchmarks.tolls`. Drivers take a cheapest path; of equal ones the one that pays most.
For each commodity the paths that some tolls make cheapest are few: they are enumerated over the
toll streets, and `bilevel.mip` solves the program over them. The check knows nothing of this:
linear programs over all streets say what each commodity pays at the tolls that were found, and what
its favourite cheapest path earns; and no other tolls that are tried, with shortest paths over all
streets, may earn more than the bound. `--check` checks the kept answer anew.

Labbé, Marcotte, Savard. "A bilevel model of taxation and its application to optimal highway
pricing". Management Science 1998.
"""

import argparse
import json
import time
from collections import Counter
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from benchmarks.harness import RESULTS, machine
from bilevel import mip

KEPT = RESULTS / "tolls.json"
CHEAPER = 1e-9
TIE = 1e-7  # of a cost, in which cheapest paths count as equal
NEAR = 1e-6  # relative, in which a claim and its check agree
OTHERS = 1000  # toll vectors that are tried against the bound


class Streets(NamedTuple):
    """A network whose first streets may take tolls."""

    tail: np.ndarray  # (streets,)
    head: np.ndarray
    cost: np.ndarray
    nodes: int
    tolls: int
    trips: np.ndarray  # (commodities, 2): from, to
    demand: np.ndarray

    def distances(self, sources, tolls: float) -> np.ndarray:
        """Between nodes, where every toll is the same; infinite ones close the streets."""
        cost = self.cost + np.where(np.arange(len(self.cost)) < self.tolls, tolls, 0.0)
        open_ = np.isfinite(cost)
        ends = self.tail[open_], self.head[open_]
        return dijkstra(csr_array((cost[open_], ends), shape=(self.nodes,) * 2), indices=sources)


class Route(NamedTuple):
    """The cheapest path of a commodity among those with the same toll streets."""

    commodity: int
    pays: frozenset[int]
    cost: float


def city(rows: int, columns: int, streets: int, tolls: int, commodities: int, seed: int) -> Streets:
    """A grid of two-way streets, some of them closed; the busiest ones take tolls."""
    rng = np.random.default_rng(seed)
    number = np.arange(rows * columns).reshape(rows, columns)
    right = number[:, :-1].ravel(), number[:, 1:].ravel()
    down = number[:-1].ravel(), number[1:].ravel()
    tail = np.concatenate([right[0], right[1], down[0], down[1]])
    head = np.concatenate([right[1], right[0], down[1], down[0]])
    kept = rng.permutation(len(tail))[:streets]
    tail, head, cost = tail[kept], head[kept], rng.integers(10, 31, streets).astype(float)
    trips = np.array([rng.choice(number.size, 2, replace=False) for _ in range(commodities)])
    made = Streets(tail, head, cost, number.size, 0, trips, rng.integers(1, 11, commodities) * 1.0)
    busiest = np.argsort(-_use(made), kind="stable")
    order = np.concatenate([busiest[:tolls], np.sort(busiest[tolls:])])
    return made._replace(tail=tail[order], head=head[order], cost=cost[order], tolls=tolls)


def _use(s: Streets) -> np.ndarray:
    """Trips on each street without tolls."""
    there, back = s.distances(s.trips[:, 0], 0.0), _reversed(s).distances(s.trips[:, 1], 0.0)
    whole = there[np.arange(len(s.trips)), s.trips[:, 1]]
    on = there[:, s.tail] + s.cost + back[:, s.head] <= whole[:, None] + CHEAPER
    return s.demand @ on


def _reversed(s: Streets) -> Streets:
    return s._replace(tail=s.head, head=s.tail)


def routes(s: Streets) -> list[Route]:
    """Every route that some tolls make cheapest.

    Raises:
        ValueError: a trip has no path without tolls, so its revenue has no bound.
    """
    heads, tails = s.head[: s.tolls], s.tail[: s.tolls]
    free = s.distances(np.concatenate([s.trips[:, 0], heads]), np.inf)
    rest = _reversed(s).distances(s.trips[:, 1], 0.0)
    count, found = len(s.trips), []
    for k, goal in enumerate(s.trips[:, 1]):
        most, best = free[k, goal], {}
        if not np.isfinite(most):
            raise ValueError(f"commodity {k} has no path without tolls.")
        open_ = [(0.0, k, frozenset())]  # cost so far, where (a row of free), tolls paid
        while open_:
            cost, at, pays = open_.pop()
            total = cost + free[at, goal]
            if total < best.get(pays, np.inf):
                best[pays] = total
            for a in range(s.tolls):
                next_cost = cost + free[at, tails[a]] + s.cost[a]
                if a not in pays and next_cost + rest[k, heads[a]] < most - CHEAPER:
                    open_.append((next_cost, count + a, pays | {a}))
        found += [
            Route(k, pays, total)
            for pays, total in best.items()
            if not any(p < pays and t <= total + CHEAPER for p, t in best.items())
        ]
    return found


def least(s: Streets, of: list[Route]) -> np.ndarray:
    """The cost of each commodity's cheapest route without tolls to pay, (commodities,)."""
    found = np.full(len(s.trips), np.inf)
    for route in of:
        found[route.commodity] = min(found[route.commodity], route.cost)
    return found


def as_program(s: Streets, of: list[Route]) -> mip.Program:
    """Columns: tolls, then trips on each route; a route without tolls is each one's way out.

    Costs are those above the cheapest route's. The follower sends at least all trips, and the
    leader allows no more: the same as "all", and every multiplier then lies between zero and the
    cost of the way out, so HiGHS can hold all conditions itself.
    """
    n, paths = s.tolls, len(of)
    uses = np.zeros((n, paths))
    owner = np.array([route.commodity for route in of])
    cost = np.array([route.cost for route in of]) - least(s, of)[owner]
    for j, route in enumerate(of):
        uses[list(route.pays), j] = 1
    way_out = np.zeros(len(s.trips))
    free = ~uses.any(axis=0)
    way_out[owner[free]] = cost[free]
    most = np.max(uses * (way_out[owner] - cost), axis=1, initial=0)
    products = np.zeros((n + paths,) * 2)
    products[:n, n:] = uses
    products[n:, :n] = uses.T
    given = np.zeros((len(s.trips), n + paths))
    given[owner, n + np.arange(paths)] = 1
    given, demand = given[np.unique(owner)], s.demand[np.unique(owner)]
    none = np.full(len(demand), np.inf)
    return mip.Program(
        cost=np.zeros(n + paths),
        share=-1.0,
        rows=np.vstack([given, given]),
        row_lower=np.r_[demand, -none],
        row_upper=np.r_[none, demand],
        upper=np.r_[most, np.full(paths, np.inf)],
        follower=np.arange(n + paths) >= n,
        follower_rows=np.arange(2 * len(demand)) < len(demand),
        follower_cost=np.r_[np.zeros(n), cost],
        follower_hessian=products,
    )


def contested(of: list[Route]) -> list[Route]:
    """The routes of the commodities that have several: the others pay no tolls."""
    count = Counter(route.commodity for route in of)
    return [route for route in of if count[route.commodity] > 1]


def check(s: Streets, tolls: np.ndarray) -> tuple[float, float]:
    """What all drivers pay at the tolls, and the revenue: two linear programs a commodity.

    Over the flows on every street: the least cost; then, at that cost, the largest revenue.
    """
    paid = np.zeros(len(s.cost))
    paid[: s.tolls] = tolls
    balance = csr_array(
        (np.repeat([1.0, -1.0], len(s.cost)),
         (np.r_[s.tail, s.head], np.tile(np.arange(len(s.cost)), 2))),
        shape=(s.nodes, len(s.cost)),
    )  # fmt: skip
    total = revenue = 0.0
    for (source, goal), demand in zip(s.trips, s.demand, strict=True):
        goes = np.zeros(s.nodes)
        goes[source], goes[goal] = 1, -1
        flows = {"A_eq": balance, "b_eq": goes, "bounds": (0, 1)}
        cheapest = linprog(s.cost + paid, **flows).fun
        room = {"A_ub": (s.cost + paid)[None], "b_ub": [cheapest + TIE]}
        total += demand * cheapest
        revenue -= demand * linprog(-paid, **flows, **room).fun
    return float(total), float(revenue)


def earned(s: Streets, tolls: np.ndarray) -> float:
    """The revenue by shortest paths over all streets; where costs are equal, drivers pay the toll.

    A toll of t counts as `(1 − TIE) t` in the cost of a path, so that equal paths with tolls win.
    """
    paid = s.cost.copy()
    paid[: s.tolls] += (1 - TIE) * tolls
    graph = csr_array((paid, (s.tail, s.head)), shape=(s.nodes,) * 2)
    _, before = dijkstra(graph, indices=s.trips[:, 0], return_predecessors=True)
    price = dict(zip(zip(s.tail[: s.tolls], s.head[: s.tolls], strict=True), tolls, strict=True))
    revenue = 0.0
    for k, (source, node) in enumerate(s.trips):
        while node != source:
            revenue += s.demand[k] * price.get((before[k, node], node), 0.0)
            node = before[k, node]
    return float(revenue)


def others(tolls: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Tolls to compare with, (count, tolls): half of them near the given ones, half anywhere."""
    near = tolls + rng.integers(-1, 2, (count // 2, len(tolls)))
    anywhere = rng.integers(0, int(2 * tolls.max()) + 2, (count - count // 2, len(tolls)))
    return np.maximum(np.vstack([near, anywhere]), 0.0)


def most_earned(s: Streets, tolls: np.ndarray, bound: float, count: int = OTHERS) -> float:
    """The largest revenue among the tolls and others.

    Raises:
        RuntimeError: it is larger than the bound, which is then none.
    """
    tried = [tolls, *others(tolls, count, np.random.default_rng(0))]
    most = max(earned(s, each) for each in tried)
    if most > bound * (1 + 1e-6):
        raise RuntimeError(f"some tolls earn {most}, more than the bound {bound}.")
    return most


def measure(seconds: float) -> dict:
    s = measured_city()
    begin = time.process_time()
    of = routes(s)
    answer = mip.solve(as_program(s, contested(of)), seconds=seconds)
    spent = time.process_time() - begin
    if answer.z is None:
        raise RuntimeError(f"no tolls were found: {answer}")
    tolls = answer.z[: s.tolls]
    found = {
        "streets": len(s.cost),
        "tolls": s.tolls,
        "commodities": len(s.trips),
        "routes": len(of),
        "ending": answer.ending.value,
        "revenue": -answer.value,
        "bound": -answer.bound,
        "gap": answer.gap,
        "programs": answer.nodes,
        "processor_seconds": round(spent, 1),
        "cost_of_all_drivers": answer.follower_value + float(s.demand @ least(s, of)),
        "prices": tolls.round(6).tolist(),
        "machine": machine(),
    }
    return checked(s, found)


def measured_city() -> Streets:
    return city(16, 17, 1000, 20, 100, seed=0)


def checked(s: Streets, found: dict) -> dict:
    """An answer, with the results of its checks by linear programs and by other tolls.

    Raises:
        RuntimeError: a check finds another revenue, or another cost of all drivers, than the answer
            has; or other tolls that earn more than its bound.
    """
    tolls = np.array(found["prices"])
    total, revenue = check(s, tolls)
    for name, claimed, by_programs in (
        ("revenue", found["revenue"], revenue),
        ("cost of all drivers", found["cost_of_all_drivers"], total),
    ):
        if abs(claimed - by_programs) > NEAR * (1 + abs(by_programs)):
            raise RuntimeError(f"the {name} is {by_programs}, and {claimed} was claimed.")
    return found | {
        "revenue_by_linear_programs": revenue,
        "cost_by_linear_programs": total,
        "others_tried": OTHERS,
        "most_earned_by_others": most_earned(s, tolls, found["bound"]),
    }


def kept() -> dict:
    return json.loads(KEPT.read_text())


def table(found: dict) -> str:
    """The kept answer beside what the linear programs say."""
    proof = f"{found['bound']:.6g} ({found['ending']}; a gap of {found['gap']:.1e})"
    rows = {
        "streets, tolls, commodities": "{streets}, {tolls}, {commodities}".format(**found),
        "routes that some tolls make cheapest": found["routes"],
        "revenue": f"{found['revenue']:.6g}",
        "no tolls earn more than": proof,
        "revenue by linear programs": f"{found['revenue_by_linear_programs']:.6g}",
        "what all drivers pay": f"{found['cost_of_all_drivers']:.6g}",
        "the same by linear programs": f"{found['cost_by_linear_programs']:.6g}",
        f"the most that these and {found['others_tried']} other tolls earn, by shortest paths": (
            f"{found['most_earned_by_others']:.6g}"
        ),
        "seconds of the processor": found["processor_seconds"],
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description="Tolls on 1000 streets.")
    parser.add_argument("--seconds", type=float, default=600.0, help="that HiGHS may take")
    parser.add_argument("--check", action="store_true", help="check the kept answer anew")
    given = parser.parse_args()
    found = checked(measured_city(), kept()) if given.check else measure(given.seconds)
    for name, value in found.items():
        print(f"{name}: {value}")
    KEPT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
