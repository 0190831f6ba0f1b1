"""Models of the lower solution as a function of x, learned instead of solved for."""

from bilevel.lower.responses.affine import Affine, AffineParameters
from bilevel.lower.responses.base import AbstractResponse, fit_gradient
from bilevel.lower.responses.dense import DenseLayer, HyperDense

__all__ = [
    "AbstractResponse",
    "Affine",
    "AffineParameters",
    "DenseLayer",
    "HyperDense",
    "fit_gradient",
]
