"""Methods for many lower problems, a few of which are updated in each step."""

from bilevel.methods.blocks.bsvrbv1 import BSVRBv1
from bilevel.methods.blocks.bsvrbv2 import BSVRBv2
from bilevel.methods.blocks.rsvrb import RSVRB

__all__ = ["RSVRB", "BSVRBv1", "BSVRBv2"]
