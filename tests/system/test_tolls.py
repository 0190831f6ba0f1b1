"""The toll-setting benchmark on small cities, against all assignments of trips to paths."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from benchmarks import tolls
from bilevel import mip

pytest.importorskip("highspy")


def simple_paths(city: tolls.Streets, source: int, goal: int):
    """Every path that visits no node twice, as sets of streets."""
    paths = []
    open_: list[tuple[int, tuple[int, ...]]] = [(source, ())]
    while open_:
        node, taken = open_.pop()
        if node == goal:
            paths.append(list(taken))
            continue
        seen = {source, *(int(city.head[a]) for a in taken)}
        for a in np.flatnonzero(city.tail == node):
            if int(city.head[a]) not in seen:
                open_.append((int(city.head[a]), (*taken, int(a))))
    return paths


def best_by_enumeration(city: tolls.Streets) -> float:
    """The largest revenue, where every commodity is told a path and a linear program sets tolls."""
    every = []
    for source, goal in city.trips:
        paths = simple_paths(city, source, goal)
        pays = np.array([np.isin(np.arange(city.tolls), path) for path in paths], float)
        cost = np.array([city.cost[path].sum() for path in paths])
        sets, group = np.unique(pays, axis=0, return_inverse=True)  # the cheapest of each suffices
        every.append((sets, np.array([cost[group == i].min() for i in range(len(sets))])))
    best = 0.0
    for choice in itertools.product(*(range(len(cost)) for _, cost in every)):
        gain = sum(city.demand[k] * every[k][0][i] for k, i in enumerate(choice))
        below = np.vstack([every[k][0][i] - every[k][0] for k, i in enumerate(choice)])
        room = np.concatenate([every[k][1] - every[k][1][i] for k, i in enumerate(choice)])
        found = linprog(-gain, below, room, bounds=(0, 1e4))
        best = max(best, -found.fun if found.status == 0 else 0.0)
    return best


def two_ways() -> tolls.Streets:
    """From 0 to 1: a street of cost 1 that may take a toll, or two streets of cost 5 in all."""
    tail, head, cost = np.array([0, 0, 2]), np.array([1, 2, 1]), np.array([1.0, 2.0, 3.0])
    return tolls.Streets(tail, head, cost, 3, 1, np.array([[0, 1]]), np.array([2.0]))


@pytest.mark.parametrize(("toll", "pays", "earns"), [(3.0, 4, 3), (4.0, 5, 4), (4.1, 5, 0)])
def test_the_check_on_two_ways(toll, pays, earns):
    expected = pytest.approx((2 * pays, 2 * earns), abs=1e-4)
    assert tolls.check(two_ways(), np.array([toll])) == expected
    assert tolls.earned(two_ways(), np.array([toll])) == pytest.approx(2 * earns)


def test_a_claim_that_does_not_hold_is_told():
    found = {"prices": [4.0], "revenue": 8.0, "cost_of_all_drivers": 10.0, "bound": 8.0}
    assert tolls.checked(two_ways(), found)["most_earned_by_others"] == pytest.approx(8)
    with pytest.raises(RuntimeError, match=r"the revenue is 8.*, and 9.0 was claimed"):
        tolls.checked(two_ways(), found | {"revenue": 9.0})
    with pytest.raises(RuntimeError, match="cost of all drivers"):
        tolls.checked(two_ways(), found | {"cost_of_all_drivers": 11.0})
    with pytest.raises(RuntimeError, match=r"more than the bound 7\.0"):
        tolls.checked(two_ways(), found | {"bound": 7.0})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_small_cities(seed):
    city = tolls.city(3, 3, 24, 3, 3, seed)
    routes = tolls.routes(city)
    answer = mip.solve(tolls.as_program(city, tolls.contested(routes)))
    assert answer.ending is mip.Ending.OPTIMAL
    assert answer.z is not None
    assert -answer.value == pytest.approx(best_by_enumeration(city), abs=1e-4)
    total, revenue = tolls.check(city, answer.z[: city.tolls])
    assert revenue == pytest.approx(-answer.value, abs=1e-4)
    paid = answer.follower_value + city.demand @ tolls.least(city, routes)
    assert total == pytest.approx(paid, abs=1e-6)
    found = tolls.earned(city, answer.z[: city.tolls])
    assert tolls.most_earned(city, answer.z[: city.tolls], -answer.bound, 50) >= found
