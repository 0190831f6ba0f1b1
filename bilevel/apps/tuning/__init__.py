"""Penalties of linear models: one per feature, group or class, by cross-validation.

The upper variable x holds log penalties. For each fold k the lower problem fits a linear model to
the other folds, `y_k*(x) = argmin_w mean_train loss(w) + ½ Σ_j exp(x_j) w_j²`; the upper loss is
the mean over the folds of the loss on the rows they hold out, with
`1/(2 n spread²) Σ_j (x_j − mean x)²` added, which keeps many penalties from fitting those rows by
chance. The hypergradient is exact, by the implicit function theorem.

    tuned = tuning.tune(tuning.Rows(A, b), tuning.squared, tuning.per_feature(A.shape[1]))
    model = tuning.fit(rows, tuning.squared, sharing, tuned.penalties)

A loss of your own is a function `(scores (n, outputs), target) -> (n,)`.

Reference: Pedregosa. "Hyperparameter optimization with approximate gradient". ICML 2016,
arXiv:1602.02355. The method is MAID: arXiv:2308.10098.
"""

from typing import TYPE_CHECKING

from bilevel.lazy import importer

if TYPE_CHECKING:
    from bilevel.apps.tuning.search import Folds, Tuned, fit, make_folds, tune
    from bilevel.apps.tuning.two_levels import Sharing, per_feature, problem, row_losses
    from bilevel.losses import Rows, logistic, losses_of, softmax, squared

__all__ = [
    "Folds",
    "Rows",
    "Sharing",
    "Tuned",
    "fit",
    "logistic",
    "losses_of",
    "make_folds",
    "per_feature",
    "problem",
    "row_losses",
    "softmax",
    "squared",
    "tune",
]

__getattr__ = importer(
    __name__,
    {
        "bilevel.apps.tuning.search": ("Folds", "Tuned", "fit", "make_folds", "tune"),
        "bilevel.apps.tuning.two_levels": ("Sharing", "per_feature", "problem", "row_losses"),
        "bilevel.losses": ("Rows", "logistic", "losses_of", "softmax", "squared"),
    },
)
