"""Pruning by BiP: learn which weights of a trained network stay, and the weights under the mask.

The upper variable is a score for each weight, and the mask m keeps the weights with the largest
ones: `min_m ℓ(m ⊙ y*(m))`, where `y*(m)` minimises `ℓ(m ⊙ y) + (γ/2) ‖y‖²`. Both losses see
`m ⊙ y` only, so with the curvature of ℓ left out the hypergradient is one backward pass,
`(y − m ⊙ ∇ℓ/γ) ⊙ ∇ℓ`, handed straight through to the scores. The two levels use different
batches, and no training afterwards is needed.

    pruned = pruning.prune(loss, params, (inputs, labels), pruning.Unstructured(0.01))

Reference: Zhang, Yao, Ram, Zhao, Chen, Hong, Wang, Liu. "Advancing model pruning via bi-level
optimization". NeurIPS 2022, arXiv:2210.04092.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilevel.apps.pruning.losses import masked, problem, relaxed, weights
    from bilevel.apps.pruning.masks import AbstractMasking, NofM, Slices, Unstructured, kept
    from bilevel.apps.pruning.ways import Pruned, iterative, method, one_shot, prune

# Imported at their first use, so that the command line reads the settings without JAX.
_HOMES = {
    "masks": ("AbstractMasking", "NofM", "Slices", "Unstructured", "kept"),
    "losses": ("masked", "problem", "relaxed", "weights"),
    "ways": ("Pruned", "iterative", "method", "one_shot", "prune"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [
    "AbstractMasking",
    "NofM",
    "Pruned",
    "Slices",
    "Unstructured",
    "iterative",
    "kept",
    "masked",
    "method",
    "one_shot",
    "problem",
    "prune",
    "relaxed",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'bilevel.apps.pruning' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
