"""Self-tuning networks: strengths of dropout, noise and augmentation, learned in one training.

The upper variable holds the strengths, unconstrained. The lower problem trains the network under
noise of these strengths, `y*(x) = argmin_y E L_train(x, y; noise)`; the upper loss is
`L_valid(y*(x))`, without noise. The network learns its own response to the strengths,
`ŷ(x) ≈ y*(x)`, from perturbed strengths, so `L_train` is never differentiated in x.

    tuning = self_tuning.Tuning({"noise": self_tuning.noise()})
    result = self_tuning.tune(tuning, self_tuning.network(key, (64, 128, 10)), train, valid)

Reference: MacKay, Vicol, Lorraine, Duvenaud, Grosse. "Self-Tuning Networks: bilevel optimization
of hyperparameters using structured best-response functions". ICLR 2019, arXiv:1903.03088.
"""

from bilevel.apps.self_tuning.strengths import (
    Augmentation,
    Strength,
    contrast,
    dropped,
    noise,
    scale,
    share,
    shift,
)
from bilevel.apps.self_tuning.tune import (
    Tuning,
    constant,
    cross_entropy,
    network,
    scores,
    tune,
)

__all__ = [
    "Augmentation",
    "Strength",
    "Tuning",
    "constant",
    "contrast",
    "cross_entropy",
    "dropped",
    "network",
    "noise",
    "scale",
    "scores",
    "share",
    "shift",
    "tune",
]
