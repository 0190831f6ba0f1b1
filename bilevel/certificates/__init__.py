"""How good a point is, whether a hypergradient is right, and how a problem is curved."""

from bilevel.certificates.certify import Certificate, Gap, certify
from bilevel.certificates.check import HypergradientCheck, Verdict, check_hypergradient
from bilevel.certificates.curvature import Convexity, Probe, hyper_curvature, probe
from bilevel.certificates.hull import Nearest, min_norm
from bilevel.certificates.kkt import (
    EpsKKT,
    ValueFunctionKKT,
    active_set_agreement,
    bome_residual,
    eps_kkt,
    fischer_burmeister,
    lower_curvature,
    lower_gap,
    lower_kkt_residual,
    value_function_kkt,
)
from bilevel.certificates.measures import (
    adjoint_residual,
    hypergradient_norm,
    lower_residual,
    projected_gradient_residual,
    tracking_error,
)
from bilevel.certificates.nonsmooth import Moreau, goldstein, moreau_gradient

__all__ = [
    "Certificate",
    "Convexity",
    "EpsKKT",
    "Gap",
    "HypergradientCheck",
    "Moreau",
    "Nearest",
    "Probe",
    "ValueFunctionKKT",
    "Verdict",
    "active_set_agreement",
    "adjoint_residual",
    "bome_residual",
    "certify",
    "check_hypergradient",
    "eps_kkt",
    "fischer_burmeister",
    "goldstein",
    "hyper_curvature",
    "hypergradient_norm",
    "lower_curvature",
    "lower_gap",
    "lower_kkt_residual",
    "lower_residual",
    "min_norm",
    "moreau_gradient",
    "probe",
    "projected_gradient_residual",
    "tracking_error",
    "value_function_kkt",
]
