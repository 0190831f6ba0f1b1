"""The tree of a decoder to safetensors files of bounded size."""

from pathlib import Path

import jax
import numpy as np

from bilevel.apps.llm.hub.tensor_files import SINGLE, cast, few, save_tensors
from bilevel.apps.llm.models import names, parameters
from bilevel.apps.llm.models.config import Config, Layers


def check_params(config: Config, params: parameters.Params) -> None:
    wanted = dict(parameters.paths(parameters.shapes_of(config, parameters.layout_of(params))))
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    found = {tuple(parameters.name_of(key) for key in path): leaf.shape for path, leaf in flat}
    if any(path[-1] in ("a", "b") for path in found):
        raise ValueError("the parameters hold an adapter; give those of lora.merge instead.")
    if found != wanted:
        wrong = sorted("/".join(map(str, path)) for path, _ in found.items() ^ wanted.items())
        raise ValueError(f"the parameters do not fit the configuration at {few(wrong)}.")


def write_tensors(
    folder: Path | None, config: Config, params, dtype, shard_bytes: float
) -> dict[str, tuple[list[str], int]]:
    """Write shard after shard; returns the tensors and bytes of each file.

    All processes call; the one that writes gives a folder.
    """
    all_tensors = names.tensors(config)
    kind = np.dtype(dtype) if dtype is not None else None

    def bytes_of(tensor):
        leaf = _leaf(params, tensor.leaves[0])
        return int(np.prod(tensor.shape)) * (kind or leaf.dtype).itemsize

    shards: list[list[names.Tensor]] = [[]]
    filled = 0
    for tensor in all_tensors:
        if shards[-1] and filled + bytes_of(tensor) > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += bytes_of(tensor)
    written = {}
    for i, shard in enumerate(shards):
        single = len(shards) == 1
        file = SINGLE if single else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        arrays = {}
        for tensor in shard:
            array = _array(params, tensor, kind)  # on all processes, since each holds a part
            arrays |= {tensor.name: array} if folder else {}
        if folder:
            save_tensors(arrays, folder / file)
        written[file] = (list(arrays), sum(array.nbytes for array in arrays.values()))
    return written


def _array(params, tensor: names.Tensor, dtype: np.dtype | None) -> np.ndarray:
    """One tensor, on this process."""
    array = tensor.join([fetch(_leaf(params, path)) for path in tensor.leaves])
    return np.ascontiguousarray(array if dtype is None else cast(tensor.name, array, dtype))


def _leaf(params, path: names.Path):
    """A leaf of a list of layers, or a row of stacked ones."""
    if path[0] != "layers" or parameters.layout_of(params) is Layers.LIST:
        node = params
        for key in path:
            node = node[key]
        return node
    _, number, *rest = path
    node = params["layers"]
    for key in rest:
        node = node[key]
    return node[number]


def fetch(leaf) -> np.ndarray:
    """All of an array, which may lie on the devices of several processes."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)
