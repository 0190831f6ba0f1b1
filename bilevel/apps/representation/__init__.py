"""Hyper-representation: features shared by many tasks, a head for each, for tasks with few samples.

The upper variable x holds the features h_x. Each of m tasks is a lower problem of its own: a linear
head on its support samples, `y_b*(x) = argmin_y mean CE(y, h_x(support_b)) + (decay/2) ‖y‖²`. The
upper loss is the mean over the tasks of the loss on their query samples,
`(1/m) Σ_b mean CE(y_b*(x), h_x(query_b))`. The methods for many lower problems update a few tasks
at a step, the others all of them.

    tasks = representation.omniglot([FILE.zip, ...]).train_tasks(50, key)
    result = representation.learn(tasks, network, "BSVRBv2", steps=2000)
    representation.judge(result.x, network, new_tasks)  # accuracy and its interval

MAML and iMAML, where all of the network adapts from a learned start, are settings of the same
problem: `learn(..., "MAML")`.

References: Franceschi, Frasconi, Salzo, Grazzi, Pontil. "Bilevel programming for hyperparameter
optimization and meta-learning". ICML 2018, arXiv:1806.04910. Guo, Hu, Zhang, Yang,
arXiv:2105.02266, and Hu, Qiu, Guo, Zhang, Yang, arXiv:2305.18730, for the methods. Finn, Abbeel,
Levine, arXiv:1703.03400 (MAML); Rajeswaran, Finn, Kakade, Levine, arXiv:1909.04630 (iMAML).
"""

from bilevel.apps.representation.omniglot import Characters, omniglot
from bilevel.apps.representation.problem import (
    Network,
    cross_entropy,
    make_convnet,
    make_linear,
    problem,
    squared,
    starts,
)
from bilevel.apps.representation.run import Judged, adapt, judge, learn
from bilevel.apps.representation.settings import METHODS, settings
from bilevel.apps.representation.tasks import Rows, Tasks, episodes, subspace

__all__ = [
    "METHODS",
    "Characters",
    "Judged",
    "Network",
    "Rows",
    "Tasks",
    "adapt",
    "cross_entropy",
    "episodes",
    "judge",
    "learn",
    "make_convnet",
    "make_linear",
    "omniglot",
    "problem",
    "settings",
    "squared",
    "starts",
    "subspace",
]
