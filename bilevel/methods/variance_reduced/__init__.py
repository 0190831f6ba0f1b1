"""Methods with variance-reduced directions, by Neumann series or dense matrices."""

from bilevel.methods.variance_reduced.mrbo import MRBO
from bilevel.methods.variance_reduced.stable import STABLE
from bilevel.methods.variance_reduced.sustain import SUSTAIN
from bilevel.methods.variance_reduced.svrb import SVRB
from bilevel.methods.variance_reduced.vrbo import VRBO

__all__ = ["MRBO", "STABLE", "SUSTAIN", "SVRB", "VRBO"]
