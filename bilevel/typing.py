"""Type aliases shared by the whole package."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Key, PRNGKeyArray, PyTree, Scalar, ScalarLike, UInt32

Upper = PyTree[Array]  # the upper variable x
Lower = PyTree[Array]  # the lower variable y, and everything shaped like it: z, v
Data = Any  # one batch, in the form that the user's loss expects
Loss = Callable[[Any, Any, Any], Scalar]  # loss(x, y, batch)
RandomKey = PRNGKeyArray | Key[Array, ""] | UInt32[Array, "2"]

__all__ = ["Data", "Loss", "Lower", "PyTree", "RandomKey", "Scalar", "ScalarLike", "Upper"]
