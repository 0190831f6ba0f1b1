"""Single-loop methods that track the adjoint together with x and y."""

from bilevel.methods.tracked.borep import BOREP
from bilevel.methods.tracked.fsla import FSLA
from bilevel.methods.tracked.masoba import MASOBA
from bilevel.methods.tracked.saba import SABA
from bilevel.methods.tracked.soba import SOBA
from bilevel.methods.tracked.srba import SRBA

__all__ = ["BOREP", "FSLA", "MASOBA", "SABA", "SOBA", "SRBA"]
