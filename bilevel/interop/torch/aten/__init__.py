"""PyTorch's core operations in JAX, by their names in `torch.ops.aten` and Python's `operator`.

An operation takes what PyTorch's takes, in the same order. Those of `RANDOM` take a `key`, too.
"""

from collections.abc import Callable, Mapping
from typing import Any

from bilevel.interop.torch.aten import elementwise, layers, pooling, recurrent, reductions, shapes

OPERATIONS: Mapping[str, Callable[..., Any]] = {
    **elementwise.OPERATIONS,
    **shapes.OPERATIONS,
    **reductions.OPERATIONS,
    **layers.OPERATIONS,
    **pooling.OPERATIONS,
    **recurrent.OPERATIONS,
}
RANDOM = layers.RANDOM | recurrent.RANDOM
