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

from typing import TYPE_CHECKING

from bilevel.lazy import importer

if TYPE_CHECKING:
    from bilevel.apps.pruning.losses import masked, problem, relaxed, weights
    from bilevel.apps.pruning.masks import AbstractMasking, NofM, Slices, Unstructured, kept
    from bilevel.apps.pruning.ways import Pruned, iterative, method, one_shot, prune

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

__getattr__ = importer(
    __name__,
    {
        "bilevel.apps.pruning.losses": ("masked", "problem", "relaxed", "weights"),
        "bilevel.apps.pruning.masks": ("AbstractMasking", "NofM", "Slices", "Unstructured", "kept"),
        "bilevel.apps.pruning.ways": ("Pruned", "iterative", "method", "one_shot", "prune"),
    },
)
