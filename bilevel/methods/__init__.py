"""Every algorithm, under the name its paper gives it."""

from bilevel.methods.aipod import AiPOD
from bilevel.methods.alset import ALSET
from bilevel.methods.amigo import AmIGO
from bilevel.methods.ba import BA
from bilevel.methods.barrier import Barrier
from bilevel.methods.base import (
    AbstractMethod,
    Below,
    Constants,
    Paper,
    Unsupported,
    all_methods,
)
from bilevel.methods.bioaid import BiOAID
from bilevel.methods.bioitd import BiOITD
from bilevel.methods.blocc import BLOCC
from bilevel.methods.bome import BOME
from bilevel.methods.borep import BOREP
from bilevel.methods.bsa import BSA
from bilevel.methods.bsvrbv1 import BSVRBv1
from bilevel.methods.bsvrbv2 import BSVRBv2
from bilevel.methods.bvfsm import BVFSM
from bilevel.methods.chenliso import ChenLiSo
from bilevel.methods.darts import DARTS
from bilevel.methods.dsblo import DSBLO
from bilevel.methods.dsigd import DSIGD
from bilevel.methods.eaipod import EAiPOD
from bilevel.methods.f2ba import F2BA
from bilevel.methods.f2sa import F2SA
from bilevel.methods.f3sa import F3SA
from bilevel.methods.fsla import FSLA
from bilevel.methods.gpbgd import GPBGD
from bilevel.methods.igfm import IGFM
from bilevel.methods.kornowski_eq import KornowskiEq
from bilevel.methods.kwon_dl import KwonDL
from bilevel.methods.kwon_sl import KwonSL
from bilevel.methods.lumei import LuMei, NestedSolver, TheorySolver
from bilevel.methods.lvhba import LVHBA
from bilevel.methods.maid import MAID
from bilevel.methods.masoba import MASOBA
from bilevel.methods.meha import MEHA
from bilevel.methods.mgd import MGD
from bilevel.methods.mrbo import MRBO
from bilevel.methods.o2nc import O2NC
from bilevel.methods.pigd import PIGD
from bilevel.methods.rsvrb import RSVRB
from bilevel.methods.saba import SABA
from bilevel.methods.smbg import SMBG
from bilevel.methods.soba import SOBA
from bilevel.methods.srba import SRBA
from bilevel.methods.ssigd import SSIGD
from bilevel.methods.stable import STABLE
from bilevel.methods.stn import STN
from bilevel.methods.stocbio import StocBiO
from bilevel.methods.superquantile_gibbs import SuperquantileGibbs
from bilevel.methods.sustain import SUSTAIN
from bilevel.methods.svrb import SVRB
from bilevel.methods.tphsd import TPHSD
from bilevel.methods.ttsa import TTSA
from bilevel.methods.upper_coupled import AugmentedLagrangian, QuadraticPenalty, UpperBarrier
from bilevel.methods.vpbgd import VPBGD
from bilevel.methods.vrbo import VRBO
from bilevel.methods.zeroth_o2nc import ZerothO2NC

__all__ = [
    "ALSET",
    "BA",
    "BLOCC",
    "BOME",
    "BOREP",
    "BSA",
    "BVFSM",
    "DARTS",
    "DSBLO",
    "DSIGD",
    "F2BA",
    "F2SA",
    "F3SA",
    "FSLA",
    "GPBGD",
    "IGFM",
    "LVHBA",
    "MAID",
    "MASOBA",
    "MEHA",
    "MGD",
    "MRBO",
    "O2NC",
    "PIGD",
    "RSVRB",
    "SABA",
    "SMBG",
    "SOBA",
    "SRBA",
    "SSIGD",
    "STABLE",
    "STN",
    "SUSTAIN",
    "SVRB",
    "TPHSD",
    "TTSA",
    "VPBGD",
    "VRBO",
    "AbstractMethod",
    "AiPOD",
    "AmIGO",
    "AugmentedLagrangian",
    "BSVRBv1",
    "BSVRBv2",
    "Barrier",
    "Below",
    "BiOAID",
    "BiOITD",
    "ChenLiSo",
    "Constants",
    "EAiPOD",
    "KornowskiEq",
    "KwonDL",
    "KwonSL",
    "LuMei",
    "NestedSolver",
    "Paper",
    "QuadraticPenalty",
    "StocBiO",
    "SuperquantileGibbs",
    "TheorySolver",
    "Unsupported",
    "UpperBarrier",
    "ZerothO2NC",
    "all_methods",
]
