"""How good a point is, whether a hypergradient is right, and how a problem is curved."""

from bilevel.certificates.certify import Certificate, Gap, certify
from bilevel.certificates.check import HypergradientCheck, Verdict, check_hypergradient
from bilevel.certificates.curvature import Convexity, Probe, probe
from bilevel.certificates.measures import (
    adjoint_residual,
    hypergradient_norm,
    lower_residual,
    projected_gradient_residual,
    tracking_error,
)

__all__ = [
    "Certificate",
    "Convexity",
    "Gap",
    "HypergradientCheck",
    "Probe",
    "Verdict",
    "adjoint_residual",
    "certify",
    "check_hypergradient",
    "hypergradient_norm",
    "lower_residual",
    "probe",
    "projected_gradient_residual",
    "tracking_error",
]
