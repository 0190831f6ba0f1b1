"""Low-rank adapters in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from bilevel.apps.llm.hub import tensor_files, write
from bilevel.apps.llm.models import names
from bilevel.apps.llm.models.config import Config, Layers
from bilevel.apps.llm.models.lora import TARGETS, Adapters, in_layout, kernel_shapes
from bilevel.apps.llm.needs import needs

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


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
    layers = in_layout(adapters, Layers.LIST)["layers"]
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
                array = write.fetch(adapter[part]).T
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
    settings = tensor_files.read_json(folder / SETTINGS, folder)
    _check_plain(settings)
    if not (folder / WEIGHTS).is_file():
        if any(path.name.endswith(tensor_files.PICKLED) for path in folder.iterdir()):
            raise ValueError(
                f"{folder} holds pickled weights, which are not read; save the adapter again with "
                "save_pretrained(folder, safe_serialization=True)."
            )
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}.")
    file = tensor_files.open_tensors(folder / WEIGHTS)
    modules, shapes, rank = _modules(config), kernel_shapes(config), settings["r"]
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
    return in_layout({"layers": found}, layers), settings["lora_alpha"] / rank


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
