"""Weights of data sources: ScaleBiO on tables, and DoGE beside it.

The upper variable x holds a logit for each of K sources, whose weights are `p = softmax(x)`. The
lower problem trains one model on all of them, `y*(x) = argmin_y Σ_k p_k mean_i loss_ki(y) +
(decay/2) ‖y‖²`, and the upper loss is that of y* on a few rows that can be trusted. ScaleBiO solves
`min_{x, y} max_z f(y) + α (g(x, y) − g(x, z))` in a single loop: this is F2SA with a constant
penalty and one AdamW step on each variable, the copies y and z on the same batch. No derivative in
the model enters the move of x, only the losses of the sources.

    found = reweight.scalebio(sources, validation, reweight.squared)
    found.weights

Reference: Pan et al. "ScaleBiO: scalable bilevel optimization for LLM data reweighting". 2024,
arXiv:2406.19976. DoGE: Fan, Pagliardini, Jaggi. "DoGE: domain reweighting with generalization
estimation". ICML 2024, arXiv:2310.15393.
"""

from typing import TYPE_CHECKING

from bilevel.lazy import importer

if TYPE_CHECKING:
    from bilevel.apps.reweight.online import doge
    from bilevel.apps.reweight.single_loop import Reweighted, method, scalebio, train
    from bilevel.apps.reweight.two_levels import Sources, problem, stratified
    from bilevel.losses import Rows, logistic, losses_of, softmax, squared

__all__ = [
    "Reweighted",
    "Rows",
    "Sources",
    "doge",
    "logistic",
    "losses_of",
    "method",
    "problem",
    "scalebio",
    "softmax",
    "squared",
    "stratified",
    "train",
]

__getattr__ = importer(
    __name__,
    {
        "bilevel.apps.reweight.online": ("doge",),
        "bilevel.apps.reweight.single_loop": ("Reweighted", "method", "scalebio", "train"),
        "bilevel.apps.reweight.two_levels": ("Sources", "problem", "stratified"),
        "bilevel.losses": ("Rows", "logistic", "losses_of", "softmax", "squared"),
    },
)
