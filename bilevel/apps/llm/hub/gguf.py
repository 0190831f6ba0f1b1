"""A GGUF file, as llama.cpp keeps models, to a checkpoint: sizes, weights and tokenizer.

Quantized weights are expanded. Nothing is written back to GGUF; `checkpoint.save` writes a Hugging
Face folder.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import DTypeLike

from bilevel.apps.llm.hub import assemble, checkpoint, config_json
from bilevel.apps.llm.models.config import Activation, Config, Family, Layers, LinearScaling, Rope
from bilevel.apps.llm.needs import needs

FAMILIES = {"llama": Family.LLAMA, "qwen2": Family.QWEN2, "qwen3": Family.QWEN3}

OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BACK = {theirs: ours for ours, theirs in (OUTER | INNER).items()}


def load_gguf(
    file: str | Path,
    *,
    dtype: DTypeLike | None = None,
    layers: Layers = Layers.LIST,
    place: assemble.Place | None = None,
) -> checkpoint.Checkpoint:
    """Read a GGUF file: its weights expanded to float32, or `dtype`, and its tokenizer.

    Args:
        dtype, layers, place: as for `checkpoint.load`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not GGUF, an architecture, RoPE kind or tokenizer that is not known here, or
            tensors missing, unknown or of another shape than the file's own numbers say.
        ImportError: gguf is not installed.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file.")
    try:
        reader = needs("gguf").GGUFReader(str(file))
    except (ValueError, IndexError) as error:
        raise ValueError(f"{file} is not a GGUF file, or is cut off: {error}.") from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    shapes = {tensor.name: tuple(int(n) for n in tensor.shape[::-1]) for tensor in reader.tensors}
    config = _config(metadata, shapes)
    source = _Tensors(str(file), config, reader, turned=metadata["general.architecture"] == "llama")
    params = assemble.assemble(config, source, dtype=dtype, layers=layers, place=place)
    files = _tokenizer(metadata)
    checkpoint.check_tokenizer(files["tokenizer.json"], config)
    about = config_json.write(config)
    for role in ("bos", "eos"):
        about[f"{role}_token_id"] = metadata.get(f"tokenizer.ggml.{role}_token_id")
    return checkpoint.Checkpoint(config, params, about, files)


class _Tensors:
    """The tensors of a GGUF file, by the names of a Hugging Face file."""

    def __init__(self, where: str, config: Config, reader: Any, turned: bool):
        self.where, self._config, self._turned = where, config, turned
        self._tensors = {_theirs_to_ours(tensor.name): tensor for tensor in reader.tensors}

    def shapes(self):
        return {
            name: tuple(int(n) for n in tensor.shape[::-1])
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        array = needs("gguf.quants").dequantize(tensor.data, tensor.tensor_type)
        if self._turned and ".self_attn.q_proj." in name:
            return _paired(array, self._config.heads)
        if self._turned and ".self_attn.k_proj." in name:
            return _paired(array, self._config.kv_heads)
        return array


def _theirs_to_ours(name: str) -> str:
    if not name.startswith("blk."):
        return BACK.get(name, name)
    _, number, rest = name.split(".", 2)
    stem, _, kind = rest.rpartition(".")
    return f"model.layers.{number}.{BACK[stem]}.{kind}" if stem in BACK else name


def _paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head from RoPE on neighbours (0, 1), (2, 3) to RoPE on halves (0, d/2), ..."""
    apart = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(apart.swapaxes(1, 2)).reshape(rows.shape)


def _config(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Config:
    kind = metadata.get("general.architecture")
    if kind not in FAMILIES:
        raise ValueError(
            f"the GGUF file has architecture {kind!r}, which is not known here. Known: "
            f"{', '.join(FAMILIES)}."
        )

    def number(name: str, default: Any = None):
        value = metadata.get(f"{kind}.{name}", default)
        if value is None:
            raise ValueError(f"the GGUF file does not say {kind}.{name}.")
        return value

    if "rope_freqs.weight" in shapes or number("expert_count", 0):
        raise ValueError(
            "the GGUF file has frequencies of RoPE of its own, or experts; neither is known here. "
            "Give the Hugging Face folder."
        )
    if "token_embd.weight" not in shapes:
        raise ValueError("the GGUF file holds no token_embd.weight.")
    scaling = metadata.get(f"{kind}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ValueError(f"the GGUF file has RoPE scaled by {scaling!r}, which is not known here.")
    factor = LinearScaling(_float(number("rope.scaling.factor"))) if scaling == "linear" else None
    heads, width, layers = (
        int(number(name)) for name in ("attention.head_count", "embedding_length", "block_count")
    )
    return Config(
        family=FAMILIES[kind],
        vocab_size=shapes["token_embd.weight"][0],
        width=width,
        inner=int(number("feed_forward_length")),
        layers=layers,
        heads=heads,
        kv_heads=int(number("attention.head_count_kv", heads)),
        head_dim=int(number("attention.key_length", width // heads)),
        max_length=int(number("context_length")),
        rope=Rope(_float(number("rope.freq_base", 10_000.0)), 1.0, factor),
        norm_eps=_float(number("attention.layer_norm_rms_epsilon")),
        activation=Activation.SILU,
        windows=(None,) * layers,
        qk_norm=kind == "qwen3",
        qkv_bias="blk.0.attn_q.bias" in shapes,
        tied="output.weight" not in shapes,
    )


def _float(stored: float) -> float:
    """The number that was meant: 1e-05 for the float32 9.999999747378752e-06."""
    return float(str(np.float32(stored)))


# --- the tokenizer -------------------------------------------------------------------------

_BYTES: dict[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_PIECES_ALONE = {**_BYTES, "use_regex": False}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> dict[str, Any]:
    pattern = {"Regex": _WORDS.format(digits=digits)}
    cut = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, _PIECES_ALONE]}


# How text is cut before merging, by the name llama.cpp has for it.
CUTS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTES,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES],
    },
    "qwen2": _split(""),
    "llama-bpe": _split("{1,3}"),
}
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def _tokenizer(metadata: dict[str, Any]) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json."""
    kind, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or cut not in CUTS:
        raise ValueError(
            f"the GGUF file has a tokenizer {kind!r} with text cut as {cut!r}; only byte-level BPE "
            f"(gpt2) with one of {', '.join(CUTS)} is known here. Give the Hugging Face folder."
        )
    texts = metadata["tokenizer.ggml.tokens"]
    kinds = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(texts))
    added = [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": one == CONTROL,
        }
        for i, (text, one) in enumerate(zip(texts, kinds, strict=True))
        if one in (CONTROL, USER_DEFINED)
    ]
    core = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if cut == "qwen2" else None,
        "pre_tokenizer": CUTS[cut],
        "post_processor": None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cut == "llama-bpe",
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": metadata.get("tokenizer.ggml.merges", []),
        },
    }
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for role, name in roles.items():
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None:
            settings[f"{role}_token"] = texts[number]
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    return {
        "tokenizer.json": json.dumps(core, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2).encode(),
    }
