"""A module as a list of operations in their order: plain data, without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PRNGKeyArray

from bilevel.interop.torch.aten import OPERATIONS, RANDOM


@dataclass(frozen=True)
class Ref:
    """The value of an input or of an earlier operation."""

    name: str


class Node(NamedTuple):
    """One operation; its arguments are numbers, text, `None`, `Ref`, and tuples of these."""

    name: str
    op: str  # a key of OPERATIONS
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


class Input(NamedTuple):
    """What `forward` takes: its name, and its shape, with `None` for a length that is free."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A module in one mode.

    Attributes:
        nodes: the operations.
        outputs: what `forward` returns, with a `Ref` for each array.
        positional, named: what `forward` takes.
        params, buffers: the name in the module of each input that is a parameter or a buffer.
        constants: inputs that are arrays of the code, or numbers.
        updates: the new value of each buffer that `forward` changes.
        draws: layers that draw at random.
    """

    nodes: tuple[Node, ...]
    outputs: Any
    positional: tuple[Input, ...] = ()
    named: Mapping[str, Input] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    updates: Mapping[str, Ref] = field(default_factory=dict)
    draws: tuple[str, ...] = ()


def evaluate(
    program: Program,
    params: Mapping[str, Array],
    buffers: Mapping[str, Array],
    inputs: Mapping[str, Array],
    key: PRNGKeyArray | None,
) -> tuple[Any, dict[str, Array]]:
    """What `forward` returns, and the buffers after it.

    Types and shapes are promoted as PyTorch does, whatever JAX is set to.
    """
    values: dict[str, Any] = {**program.constants, **inputs}
    values |= {ref: params[name] for ref, name in program.params.items()}
    values |= {ref: buffers[name] for ref, name in program.buffers.items()}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for i, node in enumerate(program.nodes):
            kwargs = _filled(node.kwargs, values)
            if node.op in RANDOM:
                kwargs["key"] = None if key is None else jax.random.fold_in(key, i)
            values[node.name] = OPERATIONS[node.op](*_filled(node.args, values), **kwargs)
    updates = _filled(program.updates, values)
    return _filled(program.outputs, values), {**buffers, **updates}


def _filled(tree: Any, values: Mapping[str, Any]) -> Any:
    return jax.tree.map(lambda leaf: values[leaf.name] if isinstance(leaf, Ref) else leaf, tree)
