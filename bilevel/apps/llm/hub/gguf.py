"""A GGUF file, as llama.cpp keeps models, to a checkpoint: sizes, weights and tokenizer.

Quantized weights are expanded. Nothing is written back to GGUF; `checkpoint.save` writes a Hugging
Face folder.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import DTypeLike

from bilevel.apps.llm.hub import assemble, checkpoint, config_json
from bilevel.apps.llm.hub.gguf_header import check_header
from bilevel.apps.llm.hub.values import LARGEST, REQUIRED, Values
from bilevel.apps.llm.models.config import Activation, Config, Family, Layers, LinearScaling, Rope
from bilevel.files.needs import needs

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
    return open_gguf(file).load(dtype=dtype, layers=layers, place=place)


class Opened(NamedTuple):
    """A GGUF file of which all but the weights has been read.

    Attributes:
        files: of the tokenizer, as in a Hugging Face folder.
        load: reads the weights; takes what `load_gguf` takes after the file.
    """

    config: Config
    files: dict[str, bytes]
    load: Callable[..., checkpoint.Checkpoint]


def open_gguf(file: str | Path) -> Opened:
    """Read sizes and tokenizer of a GGUF file; raises what `load_gguf` does."""
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file.")
    reader_of = needs("gguf").GGUFReader
    try:
        check_header(file)
        reader = reader_of(str(file))
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ImportError):
        raise
    except Exception as error:  # the package meets a torn file with whatever goes wrong first
        raise ValueError(
            f"{file} is not a GGUF file, or is cut off: {error or type(error).__name__}."
        ) from error
    shapes = {tensor.name: tuple(int(n) for n in tensor.shape[::-1]) for tensor in reader.tensors}
    config = _config(metadata, shapes)
    source = _Tensors(str(file), config, reader, turned=metadata["general.architecture"] == "llama")
    files = _tokenizer(metadata)
    checkpoint.check_tokenizer(files["tokenizer.json"], config)
    about = config_json.write(config)
    for role in ("bos", "eos"):
        about[f"{role}_token_id"] = metadata.get(f"tokenizer.ggml.{role}_token_id")

    def load(
        *,
        dtype: DTypeLike | None = None,
        layers: Layers = Layers.LIST,
        place: assemble.Place | None = None,
    ) -> checkpoint.Checkpoint:
        params = assemble.assemble(config, source, dtype=dtype, layers=layers, place=place)
        return checkpoint.Checkpoint(config, params, about, files)

    return Opened(config, files, load)


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
    if kind not in [*FAMILIES]:
        raise ValueError(
            f"the GGUF file has architecture {kind!r}, which is not known here. Known: "
            f"{', '.join(FAMILIES)}."
        )

    found = Values("the GGUF file", metadata, f"a {kind} model")

    def whole(name: str, default: Any = REQUIRED, *, least: int = 1, most: int = LARGEST) -> int:
        return found.whole(f"{kind}.{name}", default, least=least, most=most)

    def number(name: str, default: Any = REQUIRED) -> float:
        """What was meant: 1e-05 for the float32 9.999999747378752e-06."""
        return float(str(np.float32(found.number(f"{kind}.{name}", default))))

    if "rope_freqs.weight" in shapes or whole("expert_count", 0, least=0):
        raise ValueError(
            "the GGUF file has frequencies of RoPE of its own, or experts; neither is known here. "
            "Give the Hugging Face folder."
        )
    if "token_embd.weight" not in shapes:
        raise ValueError("the GGUF file holds no token_embd.weight.")
    scaling = found.text(f"{kind}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ValueError(f"the GGUF file has RoPE scaled by {scaling!r}, which is not known here.")
    factor = LinearScaling(number("rope.scaling.factor")) if scaling == "linear" else None
    heads, width = whole("attention.head_count"), whole("embedding_length")
    layers = whole("block_count", most=config_json.DEEPEST)
    return Config(
        family=FAMILIES[kind],
        vocab_size=shapes["token_embd.weight"][0],
        width=width,
        inner=whole("feed_forward_length"),
        layers=layers,
        heads=heads,
        kv_heads=whole("attention.head_count_kv", heads),
        head_dim=whole("attention.key_length", width // heads),
        max_length=whole("context_length"),
        rope=Rope(number("rope.freq_base", 10_000.0), 1.0, factor),
        norm_eps=number("attention.layer_norm_rms_epsilon"),
        activation=Activation.SILU,
        windows=(None,) * layers,
        qk_norm=kind == "qwen3",
        qkv_bias="blk.0.attn_q.bias" in shapes,
        tied="output.weight" not in shapes,
    )


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
    if kind != "gpt2" or cut not in [*CUTS]:
        raise ValueError(
            f"the GGUF file has a tokenizer {kind!r} with text cut as {cut!r}; only byte-level BPE "
            f"(gpt2) with one of {', '.join(CUTS)} is known here. Give the Hugging Face folder."
        )
    texts = _texts(metadata, "tokenizer.ggml.tokens")
    kinds = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(texts))
    if not isinstance(kinds, list) or len(kinds) != len(texts):
        raise ValueError(
            "the GGUF file has tokenizer.ggml.token_type of another length than tokens."
        )
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
            "merges": _texts(metadata, "tokenizer.ggml.merges", []),
        },
    }
    values = Values("the GGUF file", metadata, "a tokenizer")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for role, name in roles.items():
        key = f"tokenizer.ggml.{name}_token_id"
        if key in metadata:
            settings[f"{role}_token"] = texts[values.whole(key, least=0, most=len(texts) - 1)]
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = values.text("tokenizer.chat_template")
    return {
        "tokenizer.json": json.dumps(core, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2).encode(),
    }


def _texts(metadata: dict[str, Any], key: str, default: Any = None) -> list[str]:
    found = metadata.get(key, default)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"the GGUF file has no list of texts {key}.")
    return found
