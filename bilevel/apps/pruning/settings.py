"""The options of `bilevel prune`: nothing here imports an array library."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.options import Argument, Bounds


class Kind(enum.Enum):
    """What is pruned as one piece."""

    UNSTRUCTURED = "unstructured"
    N_OF_M = "n-of-m"
    FILTER = "filter"
    CHANNEL = "channel"


class Layout(enum.Enum):
    """Which axes of a weight array are inputs and outputs."""

    JAX = "jax"
    TORCH = "torch"

    def axis(self, kind: Kind) -> int:
        """The axis of a weight array to prune along: outputs for filters, inputs otherwise."""
        jax = self is Layout.JAX
        return (-1 if jax else 0) if kind is Kind.FILTER else (-2 if jax else 1)


@dataclass(frozen=True, kw_only=True)
class Prune(options.Settings):
    """Prune a trained network by BiP: learn which weights stay, and the weights."""

    weights: Annotated[Path, Argument()]
    """Trained arrays by name, .npz or .safetensors."""
    data: Path
    """.npz of inputs and labels, a row a sample; test_inputs and test_labels are for the test."""
    model: str
    """module:function of a file in this folder, called as function(weights, inputs) -> scores."""
    out: Path
    """Where the pruned arrays go, .npz or .safetensors."""
    kind: Kind = Kind.UNSTRUCTURED
    """What is pruned as one piece: weights, n of m inputs, filters (outputs), channels (inputs)."""
    density: Annotated[float, Bounds(above=0, most=1)] = 0.1
    """Share of weights, or of the filters or channels of each array, that stays."""
    pattern: tuple[int, int] = (2, 4)
    """n,m of n-of-m: of each m inputs n stay."""
    layout: Layout = Layout.JAX
    """jax: arrays are (..., in, out); torch: (out, in, ...)."""
    keep: tuple[str, ...] = ()
    """Name of an array that is not pruned, such as the last layer; repeatable."""
    steps: Annotated[int, Bounds(least=1)] = 2000
    """Steps; each takes a batch for the weights and another for the mask."""
    batch: Annotated[int, Bounds(least=1)] = 128
    """Samples of a batch."""
    step: Annotated[float, Bounds(above=0)] = 0.1
    """First step size of the weights, decayed along a cosine."""
    mask_step: Annotated[float, Bounds(least=0)] = 0.1
    """Step size of the scores that decide the mask."""
    decay: Annotated[float, Bounds(least=0)] = 1e-4
    """Weight decay."""
    report: Path | None = None
    """HTML report."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides batches, and the test rows where the data name none."""
