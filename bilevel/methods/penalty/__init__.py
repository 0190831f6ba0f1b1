"""Methods that penalise the lower value gap or gradient. All except G-PBGD are first order."""

from bilevel.methods.penalty.bome import BOME
from bilevel.methods.penalty.bvfsm import BVFSM
from bilevel.methods.penalty.f2ba import F2BA
from bilevel.methods.penalty.f2sa import F2SA
from bilevel.methods.penalty.f3sa import F3SA
from bilevel.methods.penalty.gpbgd import GPBGD
from bilevel.methods.penalty.kwon_dl import KwonDL
from bilevel.methods.penalty.kwon_sl import KwonSL
from bilevel.methods.penalty.lumei import LuMei, NestedSolver, TheorySolver
from bilevel.methods.penalty.meha import MEHA
from bilevel.methods.penalty.vpbgd import VPBGD

__all__ = [
    "BOME",
    "BVFSM",
    "F2BA",
    "F2SA",
    "F3SA",
    "GPBGD",
    "MEHA",
    "VPBGD",
    "KwonDL",
    "KwonSL",
    "LuMei",
    "NestedSolver",
    "TheorySolver",
]
