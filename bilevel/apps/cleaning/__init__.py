"""Data hyper-cleaning: learn one weight per training sample, and so find the wrong labels.

The upper variable holds one logit per training sample. The lower problem trains a classifier on
the weighted samples, `min_y mean_i sigmoid(x_i) CE_i(y) + (decay/2) ‖y‖²`; the upper loss is its
cross-entropy on a few samples whose labels are known to be right. A sample whose weight ends
below one half is detected as wrong.

Reference: Franceschi, Donini, Frasconi, Pontil. "Forward and reverse gradient-based
hyperparameter optimization". ICML 2017, arXiv:1703.01785.
"""

from bilevel.apps.cleaning.digits import Labelled, Task, digits
from bilevel.apps.cleaning.judge import Detection, accuracy, detection, references, train
from bilevel.apps.cleaning.losses import cross_entropy, data, linear, problem, start, weights
from bilevel.apps.cleaning.settings import clean, equal_cost, settings

__all__ = [
    "Detection",
    "Labelled",
    "Task",
    "accuracy",
    "clean",
    "cross_entropy",
    "data",
    "detection",
    "digits",
    "equal_cost",
    "linear",
    "problem",
    "references",
    "settings",
    "start",
    "train",
    "weights",
]
