"""Low-rank adapters: a small pytree beside frozen parameters, `W + scale * A B`.

    adapters = lora.init(config, key, rank=8)
    loss = lambda adapters: task(lora.attach(params, adapters, scale=2.0))   # trains adapters alone
    params = lora.merge(params, adapters, scale=2.0)

An adapter tree has, for every adapted kernel `(in, out)`, `{"a": (in, rank), "b": (rank, out)}` in
the place of the kernel: `{"layers": [{"query": {"a": ..., "b": ...}, ...}, ...]}`, or stacked on a
leading axis for `Layers.SCAN`.

Reference: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen. "LoRA: Low-rank adaptation of large
language models". ICLR 2022, arXiv:2106.09685.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, PyTree, ScalarLike

from bilevel.apps.llm import checkpoint, decoder, names
from bilevel.apps.llm.config import Config, Layers
from bilevel.apps.llm.decoder import Params
from bilevel.apps.llm.needs import needs

Adapters = dict[str, Any]

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def init(
    config: Config,
    key: Array,
    *,
    rank: int = 8,
    targets: Sequence[str] = ("query", "value"),
    layers: Layers = Layers.LIST,
    dtype: DTypeLike = jnp.float32,
) -> Adapters:
    """Adapters that change nothing yet: `a` is random, `b` zero.

    Args:
        targets: which kernels of each layer, of "query", "key", "value", "output", "gate", "up",
            "down".
        layers: as those of the parameters that they are for.

    Raises:
        ValueError: a rank below 1, or a target that the model has not.
    """
    if type(rank) is not int or rank < 1:
        raise ValueError(f"rank is {rank!r}; a whole number of at least 1 is needed.")
    kernels = _kernels(config)
    unknown = [name for name in targets if name not in kernels]
    if unknown or not targets:
        raise ValueError(f"targets are {list(targets)}; some of {sorted(kernels)} are needed.")

    def adapter(shape, key):
        into, out = shape
        a = jax.random.uniform(key, (into, rank), jnp.float32, -1, 1) * jnp.float32(into**-0.5)
        return {"a": a.astype(dtype), "b": jnp.zeros((rank, out), dtype)}

    keys = jax.random.split(key, (config.layers, len(targets)))
    found = [
        {name: adapter(kernels[name], keys[i, j]) for j, name in enumerate(targets)}
        for i in range(config.layers)
    ]
    return _in_layout({"layers": found}, layers)


def attach(
    params: decoder.Params, adapters: Adapters, *, scale: ScalarLike = 1.0
) -> decoder.Params:
    """Parameters that the decoder reads as `x W + scale (x A) B`; nothing is merged.

    Differentiate through it for derivatives of the adapters alone.
    """

    def join(p, adapter):
        return p | {"a": adapter["a"], "b": adapter["b"] * _like(scale, adapter["b"])}

    return _joined(params, adapters, join)


def merge(params: Params, adapters: Adapters, *, scale: ScalarLike = 1.0) -> Params:
    """Parameters with `W + scale * A B` for W, in the type of W."""

    def join(p, adapter):
        a, b = (adapter[name].astype(decoder.accurate(p["kernel"])) for name in ("a", "b"))
        more = _like(scale, a) * (a @ b)
        return p | {"kernel": (p["kernel"].astype(more.dtype) + more).astype(p["kernel"].dtype)}

    return _joined(params, adapters, join)


def _joined(params, adapters, join):
    if decoder.layout_of(params) is not decoder.layout_of(adapters):
        adapters = _in_layout(adapters, decoder.layout_of(params))

    def layer(p, adapters):
        return p | {name: join(p[name], adapter) for name, adapter in adapters.items()}

    layers, adapted = params["layers"], adapters["layers"]
    if isinstance(layers, dict):
        return params | {"layers": layer(layers, adapted)}
    return params | {"layers": [layer(*pair) for pair in zip(layers, adapted, strict=True)]}


# --- PEFT ----------------------------------------------------------------------------------


def save_peft(
    adapters: Adapters,
    config: Config,
    folder: str | Path,
    *,
    scale: float,
    base: str | None = None,
) -> None:
    """Write adapters as a folder that `peft.PeftModel.from_pretrained(model, folder)` reads.

    Args:
        scale: as given to `attach`; PEFT's `lora_alpha` is scale times rank.
        base: name or folder of the model that they adapt, for the record.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: query, key or value of a GPT-NeoX model, which its files keep in one tensor.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty; give the name of a new folder.")
    modules = _modules(config)
    layers = _in_layout(adapters, Layers.LIST)["layers"]
    targets = sorted(layers[0])
    fused = [name for name in targets if name not in modules]
    if fused:
        raise ValueError(
            f"{fused} of a {config.family.value} model lie in one tensor of its files, and PEFT "
            "would adapt them as one. Merge them (lora.merge), or adapt output, up and down."
        )
    tensors, rank = {}, int(layers[0][targets[0]]["a"].shape[1])
    for i, layer in enumerate(layers):
        for name, adapter in layer.items():
            stem = f"base_model.model.{modules[name].format(i)}"
            for part, letter in (("a", "A"), ("b", "B")):
                array = checkpoint.fetch(adapter[part]).T
                tensors[f"{stem}.lora_{letter}.weight"] = np.ascontiguousarray(array)
    if jax.process_index() != 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    needs("safetensors.numpy").save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "target_modules": [modules[name].rsplit(".", 1)[1] for name in targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def load_peft(
    folder: str | Path,
    config: Config,
    *,
    layers: Layers = Layers.LIST,
    dtype: DTypeLike | None = None,
) -> tuple[Adapters, float]:
    """Read what PEFT wrote: `(adapters, scale)`.

    Raises:
        FileNotFoundError: no adapter_config.json or adapter_model.safetensors.
        ValueError: pickled weights, another kind of adapter than plain LoRA, or tensors that do
            not fit the model.
    """
    folder = Path(folder)
    settings = checkpoint.read_json(folder / SETTINGS, folder)
    _check_plain(settings)
    if not (folder / WEIGHTS).is_file():
        if any(path.name.endswith(checkpoint.PICKLED) for path in folder.iterdir()):
            raise ValueError(
                f"{folder} holds pickled weights, which are not read; save the adapter again with "
                "save_pretrained(folder, safe_serialization=True)."
            )
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}.")
    file = checkpoint.open_tensors(folder / WEIGHTS)
    modules, shapes, rank = _modules(config), _kernels(config), settings["r"]
    left = set(file.keys())

    def read(i: int, name: str) -> dict[str, np.ndarray] | None:
        stem, (into, out) = f"base_model.model.{modules[name].format(i)}", shapes[name]
        keys = [f"{stem}.lora_{letter}.weight" for letter in "AB"]
        if not left & set(keys):
            return None
        if not left >= set(keys):
            raise ValueError(f"{folder} has one of {keys}, but not both.")
        a, b = (file.get_tensor(key).T for key in keys)
        left.difference_update(keys)
        if a.shape != (into, rank) or b.shape != (rank, out):
            raise ValueError(
                f"the adapter of {modules[name].format(i)} has shapes {a.shape} and {b.shape}; "
                f"{(into, rank)} and {(rank, out)} are needed."
            )
        return {"a": a, "b": b}

    found = []
    for i in range(config.layers):
        layer = {name: adapter for name in modules if (adapter := read(i, name)) is not None}
        found.append(jax.tree.map(lambda array: jnp.asarray(array, dtype), layer))
    if left:
        raise ValueError(f"{folder} holds {sorted(left)[:3]}, for which this model has no place.")
    if not found[0] or any(set(layer) != set(found[0]) for layer in found):
        raise ValueError(f"{folder} does not adapt the same kernels in every layer.")
    return _in_layout({"layers": found}, layers), settings["lora_alpha"] / rank


def _check_plain(settings: dict[str, Any]) -> None:
    plain = {
        "peft_type": "LORA",
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
    }
    for key, value in plain.items():
        if (settings.get(key) or value) != value:
            raise ValueError(
                f"{SETTINGS} has {key} {settings[key]!r}; only plain LoRA ({value!r}) is known "
                "here. Merge the adapter in PEFT and give the merged folder."
            )
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), (int, float)) or settings[key] <= 0:
            raise ValueError(f"{SETTINGS} has {key} {settings.get(key)!r}; a number is needed.")


def _modules(config: Config) -> dict[str, str]:
    """The modules of the files, with a place for the layer, by our names of kernels."""
    inner = names.NAMES[config.family][1]
    return {name: inner[name] for name in TARGETS if name in inner}


def _kernels(config: Config) -> dict[str, tuple[int, int]]:
    """The shapes of a layer's kernels."""
    layer = decoder.shapes_of(config)["layers"][0]
    return {name: layer[name]["kernel"] for name in TARGETS if name in layer}


def _in_layout(tree: PyTree, layers: Layers) -> Any:
    return decoder.stack(tree) if layers is Layers.SCAN else decoder.unstack(tree)


def _like(scale: ScalarLike, leaf: Array) -> Array:
    return jnp.asarray(scale, leaf.dtype)
