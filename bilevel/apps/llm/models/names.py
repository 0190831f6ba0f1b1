"""The map between the tensors of a Hugging Face file and the leaves of a parameter tree.

It uses the names in the files, not those of modules: GPT-NeoX has `embed_out`, and tied heads have
no tensor. Files have kernels `(out, in)`, and GPT-NeoX one tensor for query, key and value,
interleaved by head. Trees have separate kernels `(in, out)`.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from bilevel.apps.llm.models import parameters
from bilevel.apps.llm.models.config import Config, Family

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file, and the leaves it contains."""

    name: str
    shape: tuple[int, ...]  # in the file
    leaves: tuple[Path, ...]
    heads: int = 0  # of a fused query, key and value

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """Convert the tensor of the file to the leaves."""
        if not self.heads:
            return [array.T if _is_kernel(self.leaves[0]) else array]
        parts = array.reshape(self.heads, 3, -1, *array.shape[1:])
        rest = array.shape[1:]
        return [np.ascontiguousarray(parts[:, i]).reshape(-1, *rest).T for i in range(3)]

    def join(self, leaves: list[np.ndarray]) -> np.ndarray:
        """Convert the leaves to the tensor of the file."""
        if not self.heads:
            return leaves[0].T if _is_kernel(self.leaves[0]) else leaves[0]
        parts = [leaf.T.reshape(self.heads, -1, *self.shape[1:]) for leaf in leaves]
        return np.stack(parts, axis=1).reshape(self.shape)


def tensors(config: Config) -> list[Tensor]:
    """Every tensor of a model's files, in the order of the tree."""
    outer, inner = NAMES[config.family]
    shapes = dict(parameters.paths(parameters.shapes_of(config)))
    found = []
    for path, shape in shapes.items():
        if path[0] != "layers":
            found.append(_plain(outer["/".join(map(str, path))], path, shape))
            continue
        at, *rest = path[1:]
        name, kind = map(str, rest)
        if config.family is Family.GPT_NEOX and name in FUSED:
            if name == FUSED[0]:
                stem = inner["query_key_value"].format(at)
                leaves = tuple(("layers", at, part, kind) for part in FUSED)
                rows = 3 * shape[-1]
                whole = (rows,) if kind == "bias" else (rows, shape[0])
                found.append(Tensor(_file(stem, kind), whole, leaves, heads=config.heads))
            continue
        found.append(_plain(_file(inner[name].format(at), kind), path, shape))
    return found


def known_extra(name: str) -> bool:
    """Whether a tensor is a buffer of older files that the configuration makes redundant."""
    return re.search(r"(rotary_emb\.inv_freq|attention\.(masked_)?bias)$", name) is not None


FUSED = ("query", "key", "value")

_LLAMA_OUTER = {
    "embed": "model.embed_tokens.weight",
    "norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}
_LLAMA_INNER = {
    "attention_norm": "model.layers.{}.input_layernorm",
    "query": "model.layers.{}.self_attn.q_proj",
    "key": "model.layers.{}.self_attn.k_proj",
    "value": "model.layers.{}.self_attn.v_proj",
    "output": "model.layers.{}.self_attn.o_proj",
    "query_norm": "model.layers.{}.self_attn.q_norm",
    "key_norm": "model.layers.{}.self_attn.k_norm",
    "mlp_norm": "model.layers.{}.post_attention_layernorm",
    "gate": "model.layers.{}.mlp.gate_proj",
    "up": "model.layers.{}.mlp.up_proj",
    "down": "model.layers.{}.mlp.down_proj",
}
_NEOX_OUTER = {
    "embed": "gpt_neox.embed_in.weight",
    "norm/scale": "gpt_neox.final_layer_norm.weight",
    "norm/bias": "gpt_neox.final_layer_norm.bias",
    "head/kernel": "embed_out.weight",
}
_NEOX_INNER = {
    "attention_norm": "gpt_neox.layers.{}.input_layernorm",
    "query_key_value": "gpt_neox.layers.{}.attention.query_key_value",
    "output": "gpt_neox.layers.{}.attention.dense",
    "mlp_norm": "gpt_neox.layers.{}.post_attention_layernorm",
    "up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
    "down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
}
NAMES: dict[Family, tuple[dict[str, str], dict[str, str]]] = {
    Family.LLAMA: (_LLAMA_OUTER, _LLAMA_INNER),
    Family.MISTRAL: (_LLAMA_OUTER, _LLAMA_INNER),
    Family.QWEN2: (_LLAMA_OUTER, _LLAMA_INNER),
    Family.QWEN3: (_LLAMA_OUTER, _LLAMA_INNER),
    Family.GPT_NEOX: (_NEOX_OUTER, _NEOX_INNER),
}


def _plain(name: str, path: Path, shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, shape[::-1] if _is_kernel(path) else shape, (path,))


def _file(stem: str, kind: Any) -> str:
    return f"{stem}.{'bias' if kind == 'bias' else 'weight'}"


def _is_kernel(path: Path) -> bool:
    return path[-1] == "kernel"
