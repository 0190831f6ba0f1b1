"""Architecture search by DARTS: which operation belongs on each edge of a cell.

The upper variable holds logits of the operations of each edge, and an edge computes the mixture
`Σ_o softmax(x)_o o(h)`. The lower problem trains the weights on one half of the data,
`y*(x) = argmin_y L_train(x, y) + (decay/2) ‖y‖²`; the upper loss is `L_valid(x, y*(x))` on the
other half. At the end each edge keeps its strongest operation, and the weights are trained again.

    cell = architecture.Cell(nodes=3)
    found = architecture.search(cell, cell.weights(key, width), train_rows, valid_rows)

Reference: Liu, Simonyan, Yang. "DARTS: differentiable architecture search". ICLR 2019,
arXiv:1806.09055.
"""

from bilevel.apps.architecture.search import (
    Found,
    equal_trials,
    method,
    problem,
    random_search,
    retrain,
    search,
    squared_error,
)
from bilevel.apps.architecture.space import NONE, OPERATIONS, Architecture, Cell, Operation

__all__ = [
    "NONE",
    "OPERATIONS",
    "Architecture",
    "Cell",
    "Found",
    "Operation",
    "equal_trials",
    "method",
    "problem",
    "random_search",
    "retrain",
    "search",
    "squared_error",
]
