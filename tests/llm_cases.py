"""Tiny checkpoints of every known family and dialect of config.json, for tests and goldens.

Needs numpy and safetensors alone, so that the script that makes the goldens with PyTorch runs
where JAX is not installed.
"""

import json
from pathlib import Path

import numpy as np

VOCAB, WIDTH, INNER, LAYERS, HEADS = 48, 16, 24, 2, 4

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
_LLAMA = _SIZES | {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}
_MISTRAL = _LLAMA | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
_QWEN2 = _LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
_QWEN3 = _LLAMA | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 8}
_NEOX = _SIZES | {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 2,  # of 8 entries, so that a quarter is a pair
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# By name: the config.json. `v4` spreads RoPE over several keys, `v5` keeps it in `rope_parameters`.
CASES = {
    "llama-v4": _LLAMA | {"rope_theta": 500.0},
    "llama-v4-linear": _LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama-v4-llama3": _LLAMA | {"rope_theta": 500.0, "rope_scaling": _LLAMA3},
    "llama-v5": _LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama-v5-linear": _LLAMA
    | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
    "llama-v5-llama3": _LLAMA | {"rope_parameters": {**_LLAMA3, "rope_theta": 500.0}},
    "llama-tied": _LLAMA | {"tie_word_embeddings": True},
    "llama-biases": _LLAMA | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    "llama-gelu": _LLAMA | {"hidden_act": "gelu_new", "head_dim": 6},
    "mistral-window": _MISTRAL | {"sliding_window": 4, "rope_theta": 500.0},
    "mistral-default": {k: v for k, v in _MISTRAL.items() if k != "hidden_act"}
    | {"sliding_window": None},
    "qwen2-v4": _QWEN2 | {"use_sliding_window": False, "sliding_window": 4, "rope_theta": 1e6},
    "qwen2-windows": _QWEN2
    | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen2-v5": _QWEN2
    | {
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
    },
    "qwen3-v4": _QWEN3 | {"rope_theta": 1e6, "tie_word_embeddings": True},
    "qwen3-v5": _QWEN3
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "attention_bias": True},
    "neox-v4": _NEOX | {"rotary_pct": 0.5, "rotary_emb_base": 500.0},
    "neox-v4-default": _NEOX,
    "neox-v4-serial": _NEOX | {"rotary_pct": 0.5, "use_parallel_residual": False},
    "neox-v5": _NEOX
    | {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 500.0,
            "partial_rotary_factor": 0.5,
        }
    },
}


def shapes(about: dict) -> dict[str, tuple[int, ...]]:
    """Tensors of the file, told here independently of the library."""
    width, inner, layers = (
        about[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    vocab = about["vocab_size"]
    if about["model_type"] == "gpt_neox":
        found = {"gpt_neox.embed_in.weight": (vocab, width), "embed_out.weight": (vocab, width)}
        norms = ["gpt_neox.final_layer_norm"]
        for i in range(layers):
            stem = f"gpt_neox.layers.{i}"
            norms += [f"{stem}.input_layernorm", f"{stem}.post_attention_layernorm"]
            linear = {
                "attention.query_key_value": (3 * width, width),
                "attention.dense": (width, width),
                "mlp.dense_h_to_4h": (inner, width),
                "mlp.dense_4h_to_h": (width, inner),
            }
            for name, shape in linear.items():
                found |= {f"{stem}.{name}.weight": shape, f"{stem}.{name}.bias": shape[:1]}
        for name in norms:
            found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        return found
    head = about.get("head_dim", width // about["num_attention_heads"])
    queries, values = about["num_attention_heads"] * head, about["num_key_value_heads"] * head
    family = about["model_type"]
    biased = set()
    if family == "qwen2" or about.get("attention_bias"):
        biased |= {"q_proj", "k_proj", "v_proj"}
    if family != "qwen2" and about.get("attention_bias"):
        biased |= {"o_proj"}
    if about.get("mlp_bias"):
        biased |= {"gate_proj", "up_proj", "down_proj"}
    found = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    if not about.get("tie_word_embeddings"):
        found["lm_head.weight"] = (vocab, width)
    for i in range(layers):
        stem = f"model.layers.{i}"
        found[f"{stem}.input_layernorm.weight"] = (width,)
        found[f"{stem}.post_attention_layernorm.weight"] = (width,)
        linear = {
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (values, width),
            "self_attn.v_proj": (values, width),
            "self_attn.o_proj": (width, queries),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        for name, shape in linear.items():
            found[f"{stem}.{name}.weight"] = shape
            if name.split(".")[-1] in biased:
                found[f"{stem}.{name}.bias"] = shape[:1]
        if family == "qwen3":
            found[f"{stem}.self_attn.q_norm.weight"] = (head,)
            found[f"{stem}.self_attn.k_norm.weight"] = (head,)
    return found


def weights(about: dict) -> dict[str, np.ndarray]:
    """Numbers that look random and are the same everywhere: hashes of their places."""
    found = {}
    for k, (name, shape) in enumerate(sorted(shapes(about).items())):
        noise = _hashed(int(np.prod(shape)), k).reshape(shape)
        if len(shape) == 2:
            scale = 1.0 if "embed" in name else 2.0 / np.sqrt(shape[1])
            found[name] = (scale * noise).astype(np.float32)
        else:
            middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            found[name] = (middle + 0.3 * noise).astype(np.float32)
    return found


def _hashed(n: int, k: int) -> np.ndarray:
    """Uniform on (-1, 1), by the finaliser of splitmix64."""
    z = (np.arange(n, dtype=np.uint64) + np.uint64(k << 32)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0


def write_folder(name: str, folder: Path) -> Path:
    """The checkpoint folder of a case."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    about = CASES[name]
    (folder / "config.json").write_text(json.dumps(about))
    save_file(weights(about), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# By name: how PEFT is asked for an adapter of the model `llama-v4`.
ADAPTERS = {
    "last": {"layers_to_transform": [1]},
    "rank-stabilized": {"use_rslora": True, "init_lora_weights": "gaussian"},
}
ADAPTED = {"self_attn.q_proj": (16, 16), "mlp.down_proj": (16, 24)}  # (out, in)
RANK, ALPHA = 3, 1.5


def adapter_weights(name: str) -> dict[str, np.ndarray]:
    """Tensors of `adapter_model.safetensors`, told here independently of the library."""
    found = {}
    for i in ADAPTERS[name].get("layers_to_transform", range(LAYERS)):
        for k, (module, (out, into)) in enumerate(ADAPTED.items()):
            stem = f"base_model.model.model.layers.{i}.{module}"
            for letter, shape in (("A", (RANK, into)), ("B", (out, RANK))):
                noise = _hashed(int(np.prod(shape)), 1000 + 10 * i + 2 * k + (letter == "B"))
                found[f"{stem}.lora_{letter}.weight"] = noise.reshape(shape).astype(np.float32)
    return found


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and masks: one row whole, one padded on the left, one on the right."""
    tokens = np.abs(_hashed(3 * 12, 99) * VOCAB).astype(np.int64).reshape(3, 12) % VOCAB
    mask = np.ones((3, 12), bool)
    mask[1, :5] = False
    mask[2, 8:] = False
    return tokens, mask
