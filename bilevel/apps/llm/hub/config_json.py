"""config.json, in the dialects of transformers 4 and 5, to and from a `Config`.

Absent keys mean what they mean to transformers. Whatever would change the logits and is not known
is refused, never guessed.
"""

from typing import Any

from bilevel.apps.llm.hub.values import Values, told
from bilevel.apps.llm.models.config import (
    Activation,
    Config,
    Family,
    LinearScaling,
    Llama3Scaling,
    Rope,
)

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}

# What each family's configuration class assumes of an absent key, where families differ.
DEFAULTS: dict[Family, dict[str, Any]] = {
    Family.LLAMA: {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    Family.MISTRAL: {
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "num_key_value_heads": 8,
    },
    Family.QWEN2: {
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
    },
    Family.QWEN3: {
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "head_dim": 128,
    },
    Family.GPT_NEOX: {
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "attention_bias": True,
    },
}

DEEPEST = 10_000  # layers; each is a few entries of a Python tree

ROPE_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
}


def read(about: dict[str, Any]) -> Config:
    """The configuration that a config.json tells.

    Raises:
        ValueError: an unknown `model_type`, RoPE kind or activation; quantized weights; a key
            that is missing or that does not fit the others.
    """
    family = _family(about)
    if about.get("quantization_config") is not None:
        raise ValueError(
            "config.json has a quantization_config: the weights are packed. Give the checkpoint "
            "before quantization, or a GGUF file."
        )
    given = {key: value for key, value in about.items() if value is not None}
    found = Values("config.json", DEFAULTS[family] | given, f"a {family.value} model")
    layers = found.whole("num_hidden_layers", most=DEEPEST)
    heads, width = found.whole("num_attention_heads"), found.whole("hidden_size")
    neox = family is Family.GPT_NEOX
    if (neox or "head_dim" not in found.entries) and width % heads:
        raise ValueError(
            f"config.json has hidden_size {width} and {heads} heads; a multiple is needed, or "
            "head_dim."
        )
    bias = found.flag("attention_bias")
    return Config(
        family=family,
        vocab_size=found.whole("vocab_size"),
        width=width,
        inner=found.whole("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=heads if neox else _kv_heads(about, found, heads),
        head_dim=width // heads if neox else found.whole("head_dim", width // heads),
        max_length=found.whole("max_position_embeddings"),
        rope=_rope(found, family),
        norm_eps=found.number("layer_norm_eps" if neox else "rms_norm_eps"),
        activation=_activation(found.text("hidden_act", "silu")),
        windows=_windows(about, found, family, layers),
        layer_norm=neox,
        gated=not neox,
        parallel=neox and found.flag("use_parallel_residual", True),
        qk_norm=family is Family.QWEN3,
        qkv_bias=family is Family.QWEN2 or (bias and family is not Family.MISTRAL),
        output_bias=bias and family in (Family.LLAMA, Family.QWEN3, Family.GPT_NEOX),
        mlp_bias=neox or (family is Family.LLAMA and found.flag("mlp_bias")),
        tied=found.flag("tie_word_embeddings"),
    )


def write(config: Config) -> dict[str, Any]:
    """A config.json for a configuration, in words that transformers 4 and 5 both read."""
    c, neox = config, config.family is Family.GPT_NEOX
    about: dict[str, Any] = {
        "architectures": [ARCHITECTURES[c.family]],
        "model_type": c.family.value,
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "intermediate_size": c.inner,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "max_position_embeddings": c.max_length,
        "hidden_act": c.activation.value,
        "tie_word_embeddings": c.tied,
    }
    if neox:
        about |= {
            "layer_norm_eps": c.norm_eps,
            "rotary_emb_base": c.rope.theta,
            "rotary_pct": c.rope.fraction,
            "use_parallel_residual": c.parallel,
            "attention_bias": c.output_bias,
        }
    else:
        about |= {
            "num_key_value_heads": c.kv_heads,
            "head_dim": c.head_dim,
            "rms_norm_eps": c.norm_eps,
            "rope_theta": c.rope.theta,
        }
    if c.family in (Family.LLAMA, Family.QWEN3):
        about["attention_bias"] = c.output_bias
    if c.family is Family.LLAMA:
        about["mlp_bias"] = c.mlp_bias
    match c.rope.scaling:
        case LinearScaling(factor):
            about["rope_scaling"] = {"rope_type": "linear", "factor": factor}
        case Llama3Scaling(factor, low, high, length):
            about["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    about |= _write_windows(c)
    if read(about) != config:
        raise ValueError(
            f"{config} is not a model of the family {c.family.value}: its config.json would be "
            f"read as {read(about)}."
        )
    return about


ARCHITECTURES = {
    Family.LLAMA: "LlamaForCausalLM",
    Family.MISTRAL: "MistralForCausalLM",
    Family.QWEN2: "Qwen2ForCausalLM",
    Family.QWEN3: "Qwen3ForCausalLM",
    Family.GPT_NEOX: "GPTNeoXForCausalLM",
}


def _family(about: dict[str, Any]) -> Family:
    name = about.get("model_type")
    try:
        return Family(name)
    except ValueError:
        known = ", ".join(family.value for family in Family)
        raise ValueError(
            f"config.json has model_type {told(name)}, which is not known here. Known: {known}."
        ) from None


def _kv_heads(about: dict[str, Any], found: Values, heads: int) -> int:
    """An explicit null stands for as many as heads, an absent key for the family's default."""
    if "num_key_value_heads" in about and about["num_key_value_heads"] is None:
        return heads
    return found.whole("num_key_value_heads", heads)


def _activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise ValueError(
            f"config.json has hidden_act {told(name)}, which is not known here. Known: "
            f"{', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]


def _rope(found: Values, family: Family) -> Rope:
    """Version 5 keeps all in `rope_parameters`; version 4 spreads it over several keys."""
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(found.entries.get(key, {}), dict):
            raise found.refused(key, "an object is needed")
    given = found.entries.get("rope_parameters") or found.entries.get("rope_scaling") or {}
    neox = family is Family.GPT_NEOX
    theta = found.number("rotary_emb_base" if neox else "rope_theta", 10_000.0)
    share = found.number(*("rotary_pct", 0.25) if neox else ("partial_rotary_factor", 1.0))
    inner = Values("config.json", given, "RoPE")
    theta = inner.number("rope_theta", theta)
    share = inner.number("partial_rotary_factor", share)
    if not neox and share != 1.0:
        raise ValueError(
            f"config.json has partial_rotary_factor {share}; of the known families only gpt_neox "
            "rotates a part of each head."
        )
    kind = inner.text("rope_type", inner.text("type", "default"))
    if kind not in ROPE_KEYS:
        raise ValueError(
            f"config.json has RoPE of type {told(kind)}, which is not known here. Known: "
            f"{', '.join(ROPE_KEYS)}."
        )
    numbers = set(given) - {"rope_theta", "partial_rotary_factor", "type", "rope_type"}
    if numbers != ROPE_KEYS[kind]:
        raise ValueError(
            f"config.json has RoPE of type {kind!r} with {told(sorted(numbers))}; "
            f"{sorted(ROPE_KEYS[kind])} is needed."
        )
    scaling = None
    if kind == "linear":
        scaling = LinearScaling(inner.number("factor"))
    elif kind == "llama3":
        low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
        if low >= high:
            raise inner.refused("high_freq_factor", f"more than low_freq_factor ({low}) is needed")
        length = inner.whole("original_max_position_embeddings")
        scaling = Llama3Scaling(inner.number("factor"), low, high, length)
    return Rope(theta, share, scaling)


def _windows(
    about: dict[str, Any], found: Values, family: Family, layers: int
) -> tuple[int | None, ...]:
    """Which layers look back a bounded way."""
    if family in (Family.LLAMA, Family.GPT_NEOX):
        return (None,) * layers
    used = family is Family.MISTRAL or found.flag("use_sliding_window")
    if "sliding_window" in about and about["sliding_window"] is None:
        used = False
    window = found.whole("sliding_window") if used else None
    if family is Family.MISTRAL:
        return (window,) * layers
    kinds = found.entries.get("layer_types")
    if kinds is None:
        first = found.whole("max_window_layers", 28, least=0)
        return tuple(window if i >= first else None for i in range(layers))
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in [*known] for k in kinds):
        raise found.refused("layer_types", f"{layers} of {sorted(known)} are needed")
    if window is None and "sliding_attention" in kinds:
        raise ValueError(
            "config.json has layers of sliding_attention, but no sliding_window that is in use."
        )
    return tuple(known[kind] for kind in kinds)


def _write_windows(config: Config) -> dict[str, Any]:
    sizes = {window for window in config.windows if window is not None}
    if len(sizes) > 1:
        raise ValueError(f"config.json holds one window size; the layers have {sorted(sizes)}.")
    window = next(iter(sizes), None)
    if config.family is Family.MISTRAL:
        return {"sliding_window": window}
    if config.family not in (Family.QWEN2, Family.QWEN3):
        return {}
    if window is None:
        return {"use_sliding_window": False, "sliding_window": None}
    kinds = ["full_attention" if w is None else "sliding_attention" for w in config.windows]
    first = next(i for i, w in enumerate(config.windows) if w is not None)
    return {
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": first,
        "layer_types": kinds,
    }
