"""Methods that differentiate through the lower solution: nested, two-timescale, unrolled."""

from bilevel.methods.implicit.aipod import AiPOD
from bilevel.methods.implicit.alset import ALSET
from bilevel.methods.implicit.amigo import AmIGO
from bilevel.methods.implicit.ba import BA
from bilevel.methods.implicit.bioaid import BiOAID
from bilevel.methods.implicit.bioitd import BiOITD
from bilevel.methods.implicit.bsa import BSA
from bilevel.methods.implicit.darts import DARTS
from bilevel.methods.implicit.eaipod import EAiPOD
from bilevel.methods.implicit.maid import MAID
from bilevel.methods.implicit.smbg import SMBG
from bilevel.methods.implicit.stn import STN
from bilevel.methods.implicit.stocbio import StocBiO
from bilevel.methods.implicit.ttsa import TTSA

__all__ = [
    "ALSET",
    "BA",
    "BSA",
    "DARTS",
    "MAID",
    "SMBG",
    "STN",
    "TTSA",
    "AiPOD",
    "AmIGO",
    "BiOAID",
    "BiOITD",
    "EAiPOD",
    "StocBiO",
]
