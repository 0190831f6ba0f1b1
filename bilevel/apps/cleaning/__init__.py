"""Data hyper-cleaning: learn one weight per training sample, and so find the wrong labels.

The upper variable holds one logit per training sample. The lower problem trains a classifier on
the weighted samples, `min_y mean_i sigmoid(x_i) CE_i(y) + (decay/2) ‖y‖²`; the upper loss is its
cross-entropy on a few samples whose labels are known to be right, and a self-paced term that keeps
a few of them from being overfitted. A sample whose weight ends below one half is detected as wrong.

    task = cleaning.digits(wrong=0.5, clean=100)
    result = cleaning.clean(task, cleaning.settings()["SOBA"], steps=1000)
    cleaning.weights(result.x)

Reference: Franceschi, Donini, Frasconi, Pontil. "Forward and reverse gradient-based
hyperparameter optimization". ICML 2017, arXiv:1703.01785.
"""

from bilevel.apps.cleaning.digits import Labelled, Task, digits
from bilevel.apps.cleaning.judge import Detection, accuracy, detection, references, retrain, train
from bilevel.apps.cleaning.losses import (
    cross_entropy,
    data,
    linear,
    problem,
    self_paced,
    self_paced_data,
    start,
    weights,
)
from bilevel.apps.cleaning.models import MAKERS, Model, make_convnet, make_linear, make_mlp
from bilevel.apps.cleaning.seeds import Mean, Outcomes, mean, over_seeds
from bilevel.apps.cleaning.settings import (
    clean,
    curvature,
    equal_cost,
    network_settings,
    settings,
)

__all__ = [
    "MAKERS",
    "Detection",
    "Labelled",
    "Mean",
    "Model",
    "Outcomes",
    "Task",
    "accuracy",
    "clean",
    "cross_entropy",
    "curvature",
    "data",
    "detection",
    "digits",
    "equal_cost",
    "linear",
    "make_convnet",
    "make_linear",
    "make_mlp",
    "mean",
    "network_settings",
    "over_seeds",
    "problem",
    "references",
    "retrain",
    "self_paced",
    "self_paced_data",
    "settings",
    "start",
    "train",
    "weights",
]
