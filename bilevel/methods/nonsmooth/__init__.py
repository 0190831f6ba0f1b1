"""Methods for hyper-objectives with kinks or jumps: smoothing, perturbation, zeroth order."""

from bilevel.methods.nonsmooth.chenliso import ChenLiSo
from bilevel.methods.nonsmooth.dsblo import DSBLO
from bilevel.methods.nonsmooth.igfm import IGFM
from bilevel.methods.nonsmooth.o2nc import O2NC
from bilevel.methods.nonsmooth.pigd import PIGD
from bilevel.methods.nonsmooth.ssigd import SSIGD
from bilevel.methods.nonsmooth.superquantile_gibbs import SuperquantileGibbs
from bilevel.methods.nonsmooth.tphsd import TPHSD
from bilevel.methods.nonsmooth.zeroth_o2nc import ZerothO2NC

__all__ = [
    "DSBLO",
    "IGFM",
    "O2NC",
    "PIGD",
    "SSIGD",
    "TPHSD",
    "ChenLiSo",
    "SuperquantileGibbs",
    "ZerothO2NC",
]
