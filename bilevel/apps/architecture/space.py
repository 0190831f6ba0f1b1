"""A cell of operations: mixed while it is searched, one operation an edge afterwards."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bilevel.typing import RandomKey

Logits = dict[str, Float[Array, " operations"]]  # by edge
Architecture = dict[str, str]  # the operation of each edge that is kept

NONE = "zero"  # the operation that stands for no edge


class Operation(NamedTuple):
    """Something that an edge can do: `apply(weights, h)`, shaped like h.

    `init(key, width)` makes its weights, any pytree; `None` where it has none.
    """

    apply: Callable[[PyTree, Array], Array]
    init: Callable[[RandomKey, int], PyTree] | None = None


def _dense(key: RandomKey, width: int) -> Array:
    return jax.random.normal(key, (width, width)) / width**0.5


OPERATIONS: Mapping[str, Operation] = {
    "identity": Operation(lambda _, h: h),
    "tanh": Operation(lambda _, h: jnp.tanh(2 * h)),
    "square": Operation(lambda _, h: h**2),
    NONE: Operation(lambda _, h: jnp.zeros_like(h)),
    "linear": Operation(lambda w, h: h @ w, _dense),
}


class Cell(NamedTuple):
    """Nodes in a row, an edge from each to each later one; the last node is the output.

    Node 0 is the input. A later node is the sum of what arrives on its edges, and an edge "0-1"
    gives `Σ_o softmax(x["0-1"])_o o(h)`.

    Attributes:
        nodes: with the input.
        operations: by name. Add your own; "zero" stands for no edge.
    """

    nodes: int = 2
    operations: Mapping[str, Operation] = OPERATIONS

    @property
    def edges(self) -> tuple[str, ...]:
        return tuple(f"{i}-{j}" for j in range(1, self.nodes) for i in range(j))

    def logits(self) -> Logits:
        """The upper variable at its start: all operations alike."""
        return {edge: jnp.zeros(len(self.operations)) for edge in self.edges}

    def weights(self, key: RandomKey, width: int) -> dict[str, dict[str, Any]]:
        """Weights of every operation that has some, on every edge."""
        places = [
            (edge, name, op.init)
            for edge in self.edges
            for name, op in self.operations.items()
            if op.init is not None
        ]
        found: dict[str, dict[str, Any]] = {edge: {} for edge in self.edges}
        for k, (edge, name, init) in zip(jax.random.split(key, len(places)), places, strict=True):
            found[edge][name] = init(k, width)
        return found

    def __call__(self, x: Logits, weights: Mapping, h: Array) -> Array:
        """The mixed cell."""

        def edge(name: str, h: Array) -> Array:
            shares, own = jax.nn.softmax(x[name]), weights[name]
            ops = self.operations.items()
            given = [s * op.apply(own.get(n), h) for s, (n, op) in zip(shares, ops, strict=True)]
            return sum(given, jnp.zeros_like(h))

        return self._through(edge, self.edges, h)

    def fixed(self, architecture: Architecture, weights: Mapping, h: Array) -> Array:
        """The cell of an architecture: one operation an edge, nothing else is computed."""

        def edge(name: str, h: Array) -> Array:
            chosen = architecture[name]
            return self.operations[chosen].apply(weights[name].get(chosen), h)

        return self._through(edge, architecture, h)

    def _through(self, edge: Callable, edges: Any, h: Array) -> Array:
        values = [h]
        for j in range(1, self.nodes):
            arriving = [edge(f"{i}-{j}", values[i]) for i in range(j) if f"{i}-{j}" in edges]
            values.append(sum(arriving, jnp.zeros_like(h)))
        return values[-1]

    def discretise(self, x: Logits, incoming: int = 2) -> Architecture:
        """The strongest operation of each edge, of the `incoming` strongest edges of each node.

        The strength of an edge is the largest share of an operation other than "zero", as in the
        paper: "zero" is never chosen.
        """
        names = list(self.operations)
        real = [i for i, name in enumerate(names) if name != NONE]
        best = {}
        for name, logits in x.items():
            shares = jax.nn.softmax(logits)
            strongest = max(real, key=lambda i, shares=shares: float(shares[i]))
            best[name] = (float(shares[strongest]), names[strongest])
        chosen = {}
        for j in range(1, self.nodes):
            into = sorted((f"{i}-{j}" for i in range(j)), key=lambda e: -best[e][0])[:incoming]
            chosen |= {edge: best[edge][1] for edge in sorted(into)}
        return chosen
