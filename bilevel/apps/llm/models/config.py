"""Configuration of a decoder: sizes, RoPE, norms, activations, windows. No arrays."""

import enum
from dataclasses import dataclass


class Family(enum.Enum):
    """The supported architectures, by the `model_type` of their config.json."""

    LLAMA = "llama"
    MISTRAL = "mistral"
    QWEN2 = "qwen2"
    QWEN3 = "qwen3"
    GPT_NEOX = "gpt_neox"


class Activation(enum.Enum):
    SILU = "silu"
    GELU = "gelu"  # by the error function
    GELU_TANH = "gelu_pytorch_tanh"
    RELU = "relu"


class Layers(enum.Enum):
    """Layout of the layers in a parameter tree, which determines how they are run.

    LIST: one tree per layer. Fastest up to a few dozen layers.
    SCAN: one tree, each leaf with a leading axis of layers. Compile time and program size do not
    grow with depth.
    """

    LIST = "list"
    SCAN = "scan"


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Low frequencies are divided by a factor, high ones kept, those in between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int  # context of the first training, tokens


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of the first `fraction` of every head."""

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: LinearScaling | Llama3Scaling | None = None


@dataclass(frozen=True)
class Config:
    """A decoder-only transformer.

    Args:
        width: size of the residual stream; `inner`: size of the hidden layer of an MLP.
        kv_heads: number of key-value heads, each shared by `heads // kv_heads` query heads.
        max_length: maximal context length of the model, in tokens.
        windows: for each layer, the number of positions a token attends to (including itself), or
            None for all.
        layer_norm: LayerNorm with a bias, otherwise RMSNorm.
        gated: `down(act(gate(x)) * up(x))`, otherwise `down(act(up(x)))`.
        parallel: attention and MLP both read the input of the layer; otherwise sequential.
        qk_norm: RMSNorm of each query and key head.
        tied: the head is the embedding transposed.

    Raises:
        ValueError: the sizes are inconsistent.
    """

    family: Family
    vocab_size: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_length: int
    rope: Rope
    norm_eps: float
    activation: Activation
    windows: tuple[int | None, ...]
    layer_norm: bool = False
    gated: bool = True
    parallel: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "width", "inner", "layers", "heads", "kv_heads", "head_dim"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; a whole number of at least 1 is needed.")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} query heads cannot share {self.kv_heads} key-value heads evenly; "
                "heads must be a multiple of kv_heads."
            )
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ValueError(
                f"RoPE would rotate {self.rotary_dim} of {self.head_dim} entries of a head; an "
                "even number, at most all of them, is needed."
            )
        if len(self.windows) != self.layers:
            raise ValueError(
                f"windows has {len(self.windows)} entries for {self.layers} layers; one a layer."
            )

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.rope.fraction)


def llama(
    vocab_size: int,
    width: int,
    inner: int,
    layers: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    tied: bool = False,
    max_length: int = 2048,
    rope: Rope | None = None,
) -> Config:
    """The configuration of a Llama model of any size, for training from scratch."""
    return Config(
        family=Family.LLAMA,
        vocab_size=vocab_size,
        width=width,
        inner=inner,
        layers=layers,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=width // heads,
        max_length=max_length,
        rope=Rope() if rope is None else rope,
        norm_eps=1e-5,
        activation=Activation.SILU,
        windows=(None,) * layers,
        tied=tied,
    )
