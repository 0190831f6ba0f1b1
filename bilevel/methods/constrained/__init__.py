"""Methods for constraints on the lower problem or on its solution."""

from bilevel.methods.constrained.barrier import Barrier
from bilevel.methods.constrained.blocc import BLOCC
from bilevel.methods.constrained.dsigd import DSIGD
from bilevel.methods.constrained.gda import GDA
from bilevel.methods.constrained.kornowski_eq import KornowskiEq
from bilevel.methods.constrained.lvhba import LVHBA
from bilevel.methods.constrained.mgd import MGD
from bilevel.methods.constrained.upper_coupled import (
    AugmentedLagrangian,
    QuadraticPenalty,
    UpperBarrier,
)

__all__ = [
    "BLOCC",
    "DSIGD",
    "GDA",
    "LVHBA",
    "MGD",
    "AugmentedLagrangian",
    "Barrier",
    "KornowskiEq",
    "QuadraticPenalty",
    "UpperBarrier",
]
