"""The two losses: what the planner pays, and what travellers minimise together.

The lower problem is solved by `equilibrium`, called from compiled code. Its solution, link flows v
and the projection P on changes of flow between paths taken, is the lower variable. With
`H = diag(∂cost/∂v)` the flows change by `dv = −z`, `P H z = P ∂cost`, z in the range of P, as long
as no path begins or ceases to be taken; there one side is told.

Reference: Friesz, Tobin, Cho, Mehta. "Sensitivity analysis based heuristic algorithms for
mathematical programs with variational inequality constraints". Mathematical Programming 1990.
"""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from bilevel import sets
from bilevel.apps.networks.assignment import Equilibrium, equilibrium, links_of, total_time
from bilevel.apps.networks.network import Network, travel_time
from bilevel.apps.networks.paths import Paths
from bilevel.problem import Problem

RIDGE = 1e-12  # relative, where costs do not grow with flow


class Kind(enum.Enum):
    """What is designed."""

    TOLLS = "tolls"
    CAPACITIES = "capacities"
    LINKS = "links"


class Flows(NamedTuple):
    """The lower variable."""

    flows: Float[Array, " links"]
    moves: Float[Array, "links links"]  # the projection P


class Design(NamedTuple):
    """What may change: x, in [0, 1], scaled to `most`.

    Attributes:
        links: the k links that x is for.
        most: the largest toll, in units of time, or capacity added; for `LINKS` that of a link
            that is built.
        price: of one unit of x, for each, in units of total time; 0 for tolls.
    """

    network: Network
    kind: Kind
    links: Int[np.ndarray, " k"]
    most: Float[np.ndarray, " k"]
    price: Float[np.ndarray, " k"]

    def toll(self, x: Any, zeros: Any) -> Any:
        """The toll of every link."""
        return _put(zeros, self.links, x * self.most) if self.kind is Kind.TOLLS else zeros

    def capacity(self, x: Any, capacity: Any) -> Any:
        """The capacity of every link."""
        if self.kind is Kind.TOLLS:
            return capacity
        return _put(capacity, self.links, x * self.most)


def _put(values: Any, at: Any, added: Any) -> Any:
    if isinstance(added, np.ndarray):
        values = np.array(values, float)
        np.add.at(values, at, added)
        return values
    return jnp.asarray(values).at[at].add(added)


class Evaluator:
    """The planner's loss of a design by a full equilibrium; counts them, and keeps their paths."""

    def __init__(self, design: Design):
        self.design, self.count = design, 0
        self.paths: Paths | None = None

    def solve(self, x: Any) -> Equilibrium:
        """The equilibrium of a design."""
        d, n = self.design, self.design.network
        x = np.asarray(x, float)
        links = links_of(n, toll=d.toll(x, np.zeros(n.links)), capacity=d.capacity(x, n.capacity))
        found = equilibrium(n, links, paths=self.paths)
        self.count += 1
        self.paths = found.paths
        return found

    def loss(self, x: Any) -> float:
        """Total time, and the price of the design."""
        d, x = self.design, np.asarray(x, float)
        found, capacity = self.solve(x), d.capacity(x, d.network.capacity)
        return total_time(d.network, found.flows, capacity) + float(d.price @ x)


def problem(evaluator: Evaluator) -> Problem:
    """The design problem over x in [0, 1]^k; in double precision."""
    d, n = evaluator.design, evaluator.design.network
    arrays = tuple(map(jnp.asarray, (n.free, n.b, n.power, n.capacity, d.price)))
    zeros = jnp.zeros(n.links)

    def cost(x, flows):
        free, b, power, capacity, _ = arrays
        return travel_time(free, b, power, d.capacity(x, capacity), flows) + d.toll(x, zeros)

    def upper(x, y, batch):
        free, b, power, capacity, price = arrays
        times = travel_time(free, b, power, d.capacity(x, capacity), y.flows)
        return y.flows @ times + price @ x

    def lower(x, y, batch):
        free, b, power, capacity, _ = arrays
        grown = b * (y.flows / d.capacity(x, capacity)) ** power / (power + 1)
        return y.flows @ (free * (1 + grown) + d.toll(x, zeros))

    def solve(x, y, batch):
        def host(x):
            found = evaluator.solve(x)
            return found.flows, found.moves

        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), y)
        return Flows(*jax.pure_callback(host, tuple(like), x))

    def hypergradient(x, y, batch):
        f_x, f_y = jax.grad(upper, argnums=(0, 1))(x, y, None)
        _, slopes = jax.jvp(lambda v: cost(x, v), (y.flows,), (jnp.ones_like(y.flows),))
        P = y.moves
        system = P @ (slopes[:, None] * P)
        ridge = RIDGE * jnp.trace(system) * P
        z = jnp.linalg.solve(system + ridge + jnp.eye(n.links) - P, P @ f_y.flows)
        _, pull = jax.vjp(lambda x: cost(x, y.flows), x)
        return f_x - pull(P @ z)[0]

    box = sets.Box(0.0, 1.0)
    return Problem(
        Partial(upper),
        Partial(lower),
        upper_set=box,
        hypergradient=Partial(hypergradient),
        lower_step=Partial(solve),
    )


def start(evaluator: Evaluator, x: Any) -> Flows:
    """The lower variable of a design."""
    found = evaluator.solve(x)
    return Flows(jnp.asarray(found.flows), jnp.asarray(found.moves))
