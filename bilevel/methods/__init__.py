"""Every algorithm, under the name its paper gives it."""

from bilevel.methods.base import AbstractMethod, Paper, Unsupported, all_methods
from bilevel.methods.f2sa import F2SA
from bilevel.methods.soba import SOBA
from bilevel.methods.stocbio import StocBiO
from bilevel.methods.ttsa import TTSA

__all__ = [
    "F2SA",
    "SOBA",
    "TTSA",
    "AbstractMethod",
    "Paper",
    "StocBiO",
    "Unsupported",
    "all_methods",
]
