"""Named tensors of a file to the tree of a decoder, checked against its shapes."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from bilevel.apps.llm.hub.tensor_files import cast, few
from bilevel.apps.llm.models import names, parameters
from bilevel.apps.llm.models.config import Config, Layers

Place = Callable[[names.Path, np.ndarray], Any]


class Source(Protocol):
    """Tensors by the names of a Hugging Face file."""

    where: str

    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> np.ndarray: ...


def assemble(
    config: Config,
    source: Source,
    *,
    dtype: DTypeLike | None,
    layers: Layers,
    place: Place | None,
) -> parameters.Params:
    """Check the tensors of a source against a configuration, read and place them."""
    wanted = names.tensors(config)
    _check_tensors(config, wanted, source)
    put = place or (lambda path, array: jnp.asarray(array))

    def read(tensor: names.Tensor) -> Iterator[tuple[names.Path, np.ndarray]]:
        array = cast(tensor.name, source.read(tensor.name), dtype)
        yield from zip(tensor.leaves, tensor.split(array), strict=True)

    leaves = {}
    if layers is Layers.LIST:
        for tensor in wanted:
            leaves |= {path: put(path, array) for path, array in read(tensor)}
        return _tree(leaves)
    groups: dict[names.Path, list[names.Tensor]] = {}  # the same tensor of every layer
    for tensor in wanted:
        groups.setdefault(_without_number(tensor.leaves[0]), []).append(tensor)
    for group in groups.values():
        rows = [list(read(tensor)) for tensor in group]
        for same in zip(*rows, strict=True):
            path, arrays = _without_number(same[0][0]), [array for _, array in same]
            leaves[path] = put(path, np.stack(arrays) if path[0] == "layers" else arrays[0])
    return _tree(leaves)


def _check_tensors(config: Config, wanted: list[names.Tensor], source: Source) -> None:
    shapes = source.shapes()
    missing = [tensor.name for tensor in wanted if tensor.name not in shapes]
    if missing:
        tied = " Is it tied? Then config.json must say so." if _head(config) in missing else ""
        raise ValueError(f"{source.where} lacks {few(missing)}, which config.json asks for.{tied}")
    for tensor in wanted:
        if shapes[tensor.name] != tensor.shape:
            rows, first = shapes[tensor.name][0], tensor.shape[0]
            vocabulary = tensor.leaves[0][0] in ("embed", "head") and rows != first
            words = f" The vocabulary is {rows} there and {first} here." if vocabulary else ""
            raise ValueError(
                f"{tensor.name} in {source.where} has shape {shapes[tensor.name]}; config.json "
                f"asks for {tensor.shape}.{words}"
            )
    known = {tensor.name for tensor in wanted}
    extra = [name for name in shapes if name not in known and not names.known_extra(name)]
    if config.tied and _head(config) in extra:
        embed = names.NAMES[config.family][0]["embed"]
        if not np.array_equal(source.read(_head(config)), source.read(embed)):
            raise ValueError(
                f"config.json says that head and embedding are tied, but {source.where} holds a "
                f"{_head(config)} that differs from {embed}. Set tie_word_embeddings to what is "
                "meant."
            )
        extra.remove(_head(config))
    if extra:
        raise ValueError(
            f"{source.where} holds {few(extra)}, for which a {config.family.value} model with "
            "this config.json has no place."
        )


def _head(config: Config) -> str:
    return names.NAMES[config.family][0]["head/kernel"]


def _without_number(path: names.Path) -> names.Path:
    return (path[0], *path[2:]) if path[0] == "layers" else path


def _tree(leaves: dict[names.Path, Any]) -> dict[str, Any]:
    """Nested dictionaries, and a list of layers where they are numbered."""
    tree: dict[Any, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    if 0 in tree["layers"]:
        tree["layers"] = [tree["layers"][i] for i in range(len(tree["layers"]))]
    return tree
