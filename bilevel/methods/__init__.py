"""All algorithms, under the names of their papers, with one folder per family."""

import difflib
from typing import Never

from bilevel.methods.base import (
    AbstractMethod,
    Constants,
    LowerAssumption,
    Unsupported,
    all_methods,
)
from bilevel.methods.blocks import RSVRB, BSVRBv1, BSVRBv2
from bilevel.methods.constrained import (
    BLOCC,
    DSIGD,
    GDA,
    LVHBA,
    MGD,
    AugmentedLagrangian,
    Barrier,
    KornowskiEq,
    QuadraticPenalty,
    UpperBarrier,
)
from bilevel.methods.implicit import (
    ALSET,
    BA,
    BSA,
    DARTS,
    MAID,
    SMBG,
    STN,
    TTSA,
    AiPOD,
    AmIGO,
    BiOAID,
    BiOITD,
    EAiPOD,
    StocBiO,
)
from bilevel.methods.nonsmooth import (
    DSBLO,
    IGFM,
    O2NC,
    PIGD,
    SSIGD,
    TPHSD,
    ChenLiSo,
    SuperquantileGibbs,
    ZerothO2NC,
)
from bilevel.methods.penalty import (
    BOME,
    BVFSM,
    F2BA,
    F2SA,
    F3SA,
    GPBGD,
    MEHA,
    VPBGD,
    KwonDL,
    KwonSL,
    LuMei,
    NestedSolver,
    TheorySolver,
)
from bilevel.methods.references import Paper
from bilevel.methods.tracked import BOREP, FSLA, MASOBA, SABA, SOBA, SRBA
from bilevel.methods.variance_reduced import MRBO, STABLE, SUSTAIN, SVRB, VRBO

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
    "GDA",
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
    "BiOAID",
    "BiOITD",
    "ChenLiSo",
    "Constants",
    "EAiPOD",
    "KornowskiEq",
    "KwonDL",
    "KwonSL",
    "LowerAssumption",
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


def __getattr__(name: str) -> Never:
    alike = {known.lower(): known for known in __all__}
    near = difflib.get_close_matches(name.lower(), alike, n=1)
    hint = f" Did you mean {alike[near[0]]!r}?" if near and not name.startswith("_") else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{hint}")
