"""Leaders and followers: road networks, knapsacks, grasps and transmit powers."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from benchmarks.applications.row import Row, timed

SIOUX_FALLS = Path(__file__).parents[2] / "tests" / "data"


def network() -> Iterator[Row]:
    """Capacities of 8 links of Sioux Falls; the rival solves as many equilibria."""
    from bilevel.apps import networks

    names = ("sioux_falls_net.tntp", "sioux_falls_trips.tntp")
    links = ["6-8", "8-6", "7-8", "8-7", "9-10", "10-9", "10-16", "16-10"]
    plan = networks.plan(
        networks.read(*(SIOUX_FALLS / name for name in names)),
        networks.Kind.CAPACITIES,
        links,
        price=20000.0,
    )
    evaluator = networks.Evaluator(plan)
    ours, seconds = timed(networks.improve, evaluator, steps=40, progress=False)
    loss = networks.Evaluator(plan).loss
    theirs, rival = timed(
        networks.genetic, loss, len(links), evaluations=evaluator.count, hybrid=False
    )
    told = f"genetic algorithm, {evaluator.count} equilibria each"
    measure = "cost of travel and building / 10⁶"
    values = ours.value / 1e6, theirs.value / 1e6
    yield Row("road capacities, Sioux Falls", measure, told, *values, seconds, rival)


def games() -> Iterator[Row]:
    """Items taken away from a knapsack of fourteen, within a budget, to a proven gap."""
    from bilevel import mip

    draw = np.random.default_rng(0)
    n = 14
    profit, weight, price = (draw.integers(1, 30, n).astype(float) for _ in range(3))
    room, budget = np.floor(weight.sum() / 2), np.floor(price.sum() / 3)
    none, one = np.zeros(n), np.eye(n)
    program = mip.Program(
        cost=np.r_[none, profit],
        rows=np.vstack([np.r_[price, none], np.r_[none, weight], np.hstack([one, one])]),
        row_upper=np.r_[budget, room, np.ones(n)],
        upper=np.ones(2 * n),
        integer=np.ones(2 * n, bool),
        follower=np.arange(2 * n) >= n,
        follower_rows=np.arange(n + 2) >= 1,
        follower_cost=np.r_[none, -profit],
    )

    def listed() -> float:
        """Every removal against every packing."""
        subsets = np.array(list(itertools.product((0.0, 1.0), repeat=n)))
        packed = subsets[subsets @ weight <= room]
        packed = packed[np.argsort(-packed @ profit)]  # the first that is left whole is the best
        worst = np.inf
        for taken in subsets[subsets @ price <= budget]:
            worst = min(worst, packed[np.argmax(packed @ taken == 0)] @ profit)
        return float(worst)

    ours, seconds = timed(mip.solve, program)
    theirs, rival = timed(listed)
    told = "every removal, every packing"
    yield Row(
        "knapsack of 14 items, interdicted", "value left", told, ours.value, theirs, seconds, rival
    )


def robust() -> Iterator[Row]:
    """A first stage of a knapsack, before the worst profits are met."""
    from bilevel.apps import robust as app
    from bilevel.apps.robust.knapsack import enumerate_all

    k = app.instance(seed=0)
    ours, seconds = timed(lambda: app.choose(k, app.fit(k)))
    (_, best), rival = timed(enumerate_all, k)
    told = "every first stage, every scenario"
    yield Row(
        "two-stage knapsack", "worst-case value", told, ours.value, float(best), seconds, rival
    )


def grasp() -> Iterator[Row]:
    """Where two fingers hold a circle."""
    from scipy.optimize import differential_evolution

    from bilevel.apps import grasp as app

    circle, start = app.ellipse(), jnp.deg2rad(jnp.array([0.0, 90.0]))

    def energy(x) -> float:
        return float(app.energy(circle, jnp.asarray(x)))

    ours, seconds = timed(app.plan, circle, start, steps=300, progress=False)
    theirs, rival = timed(differential_evolution, energy, [(0, 2 * np.pi)] * 2, maxiter=20, rng=0)
    told = "differential evolution of SciPy"
    yield Row("two fingers", "energy", told, energy(ours.x), float(theirs.fun), seconds, rival)


def wireless() -> Iterator[Row]:
    """Three kinds of channels, one after the other, with a third of the samples in memory."""
    from bilevel.apps import wireless as app
    from examples.wireless import episodes

    train, test = episodes(400)

    def served(memory: app.Memory):
        def last():
            return app.learn(train, memory, size=133, steps=1000)[-1]

        x, seconds = timed(last)
        return float(np.mean([app.served(x, one) for one in test])), seconds

    (ours, seconds), (theirs, rival) = served(app.Memory.LARGEST), served(app.Memory.RESERVOIR)
    told = "a reservoir of samples"
    yield Row("power control", "rate / rate of WMMSE", told, ours, theirs, seconds, rival)


PARTS = {
    "network": network, "games": games, "robust": robust, "grasp": grasp, "wireless": wireless,
}  # fmt: skip
