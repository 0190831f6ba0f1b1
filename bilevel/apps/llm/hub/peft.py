"""Low-rank adapters in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from bilevel.apps.llm.hub import folders, tensor_files, write
from bilevel.apps.llm.hub.values import Values, told
from bilevel.apps.llm.models import lora, names
from bilevel.apps.llm.models.config import Config, Layers
from bilevel.apps.llm.models.lora import TARGETS, Adapters, in_layout, kernel_shapes

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

    Adapters of fewer layers than the model's are those of its last layers, as everywhere here. The
    folder is whole or absent at any moment, see `folders.new_folder`.

    Args:
        scale: as given to `attach`; PEFT's `lora_alpha` is scale times rank.
        base: name or folder of the model that they adapt, for the record.

    Raises:
        FileExistsError: the folder holds something.
        OSError: the disk is full, or cannot be written; nothing is left.
        ValueError: query, key or value of a GPT-NeoX model, which its files keep in one tensor;
            more layers than the model has; several ranks.
    """
    modules = _modules(config)
    layers = in_layout(adapters, Layers.LIST)["layers"]
    below = lora.below(config.layers, len(layers))
    targets = sorted(layers[0])
    fused = [name for name in targets if name not in modules]
    if fused:
        raise ValueError(
            f"{fused} of a {config.family.value} model lie in one tensor of its files, and PEFT "
            "would adapt them as one. Merge them (lora.merge), or adapt output, up and down."
        )
    ranks = {int(adapter["a"].shape[1]) for layer in layers for adapter in layer.values()}
    if len(ranks) > 1:
        raise ValueError(f"the adapters have ranks {sorted(ranks)}; one rank for all is needed.")
    (rank,) = ranks
    tensors = {}
    for i, layer in enumerate(layers, below):
        for name, adapter in layer.items():
            stem = f"base_model.model.{modules[name].format(i)}"
            for part, letter in (("a", "A"), ("b", "B")):
                array = write.fetch(adapter[part]).T
                tensors[f"{stem}.lora_{letter}.weight"] = np.ascontiguousarray(array)
    if jax.process_index() != 0:
        return
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "target_modules": [modules[name].rsplit(".", 1)[1] for name in targets],
        "layers_to_transform": list(range(below, config.layers)) if below else None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    with folders.new_folder(folder) as part:
        tensor_files.save_tensors(tensors, part / WEIGHTS)
        (part / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_peft(
    folder: str | Path,
    config: Config,
    *,
    layers: Layers = Layers.LIST,
    dtype: DTypeLike | None = None,
) -> tuple[Adapters, float]:
    """Read what PEFT wrote: `(adapters, scale)`, of all layers or of the last ones.

    Raises:
        FileNotFoundError: no adapter_config.json or adapter_model.safetensors.
        ValueError: pickled weights, a setting that makes it anything else than plain LoRA or is
            not known here, or tensors that do not fit the model or the range of `dtype`.
    """
    folder = Path(folder)
    rank, scale = _rank_and_scale(tensor_files.read_json(folder / SETTINGS, folder))
    if not (folder / WEIGHTS).is_file():
        if any(path.name.endswith(tensor_files.PICKLED) for path in folder.iterdir()):
            raise ValueError(
                f"{folder} holds pickled weights, which are not read; save the adapter again with "
                "save_pretrained(folder, safe_serialization=True)."
            )
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}.")
    file = tensor_files.open_tensors(folder / WEIGHTS)
    modules, shapes = _modules(config), kernel_shapes(config)
    left = set(file.keys())

    def read(i: int, name: str) -> dict[str, np.ndarray] | None:
        stem, (into, out) = f"base_model.model.{modules[name].format(i)}", shapes[name]
        keys = [f"{stem}.lora_{letter}.weight" for letter in "AB"]
        if not left & set(keys):
            return None
        if not left >= set(keys):
            raise ValueError(f"{folder} has one of {keys}, but not both.")
        a, b = (tensor_files.cast(key, file.get_tensor(key), dtype).T for key in keys)
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
        found.append(jax.tree.map(jnp.asarray, layer))
    if left:
        raise ValueError(f"{folder} holds {sorted(left)[:3]}, for which this model has no place.")
    adapted = [i for i, layer in enumerate(found) if layer]
    if not adapted or any(set(layer) != set(found[-1]) for layer in found[adapted[0] :]):
        raise ValueError(
            f"{folder} adapts the layers {adapted} of {config.layers}; all layers or the last ones "
            "are needed, with the same kernels in each. Merge the adapter in PEFT and give the "
            "merged folder."
        )
    return in_layout({"layers": found[adapted[0] :]}, layers), scale


# What adapter_config.json may say of plain LoRA. Settings that are absent here may be off.
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # Others start from a base whose weights they have changed (PiSSA, OLoRA, LoftQ, CorDA, ...).
    "init_lora_weights": (True, False, "gaussian"),
}
# What says nothing of the result: the tensors tell which layers and modules are adapted.
IDLE = {
    "auto_mapping",
    "base_model_name_or_path",
    "ephemeral_gpu_offload",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}


def _rank_and_scale(settings: dict[str, Any]) -> tuple[int, float]:
    """Of plain LoRA, or rank-stabilized LoRA (Kalajdzievski, arXiv:2312.03732)."""
    for key, allowed in PLAIN.items():
        if key in settings and not any(_same(settings[key], value) for value in allowed):
            raise _refused(key, settings[key], f"known: {', '.join(map(repr, allowed))}")
    numbers = {"r", "lora_alpha", "use_rslora"}
    for key in sorted(set(settings) - set(PLAIN) - IDLE - numbers):
        if not any(_same(settings[key], off) for off in (None, False, {}, [])):
            raise _refused(key, settings[key], "not known here")
    values = Values(SETTINGS, settings, "LoRA")
    rank, alpha = values.whole("r"), values.number("lora_alpha")
    return rank, alpha / (rank**0.5 if values.flag("use_rslora") else rank)


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def _refused(key: str, value: Any, why: str) -> ValueError:
    return ValueError(
        f"{SETTINGS} has {key} {told(value)}; only plain LoRA is read ({why}). Merge the adapter "
        "in PEFT and give the merged folder."
    )


def _modules(config: Config) -> dict[str, str]:
    """The modules of the files, with a place for the layer, by our names of kernels."""
    inner = names.NAMES[config.family][1]
    return {name: inner[name] for name in TARGETS if name in inner}
