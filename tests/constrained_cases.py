"""The methods for constraints and for lower levels that are not strongly convex, each on a problem.

A new method joins with one row in CONSTRAINED; what every row must satisfy stands in
test_constrained_contract.py.
"""

from collections.abc import Callable
from typing import NamedTuple

from bilevel import hypergrad, linear, lower, methods, problems, schedules
from bilevel.methods import AbstractMethod
from bilevel.problems import Case


class Known(NamedTuple):
    """A method, and a problem whose answer it finds.

    case: its `x_star` is the answer, from `x0` and `y0`.
    method: with every x step multiplied by `speed`.
    steps: after which x is within `tol` of the answer (Euclidean distance).
    random: it draws at random without samples, so that seeds differ.
    adaptive: its steps hold solves of unknown length, so that its price is not a count.
    """

    case: Callable[[], Case]
    method: Callable[[float], AbstractMethod]
    steps: int
    tol: float
    random: bool = False
    adaptive: bool = False


def following(step: float) -> methods.BA:
    """A method whose y is y*(x) after one step, where the lower Hessian is the identity."""
    return methods.BA(step, 1.0, linear.Neumann(1, 1.0), lower_steps=1)


CONSTRAINED: dict[str, Known] = {
    "AiPOD": Known(
        problems.eqeq,
        lambda speed: methods.AiPOD(0.2 * speed, 0.5, linear.Neumann(20, 0.5)),
        steps=100,
        tol=1e-5,
    ),
    "EAiPOD": Known(
        problems.eqeq,
        lambda speed: methods.EAiPOD(0.05 * speed, 0.5, linear.Neumann(20, 0.5)),
        steps=300,
        tol=1e-5,
        random=True,
    ),
    "KornowskiEq": Known(
        problems.eqeq,
        lambda speed: methods.KornowskiEq(0.2 * speed),
        steps=60,
        tol=1e-4,
        adaptive=True,
    ),
    "VPBGD": Known(  # with a penalty γ the answer is 2/(9γ + 3) off
        problems.rank1,
        lambda speed: methods.VPBGD(2e-3 * speed, 2e-3, 0.4, 100.0, 5),
        steps=30_000,
        tol=3e-3,
    ),
    "GPBGD": Known(
        problems.rank1,
        lambda speed: methods.GPBGD(1e-3 * speed, 1e-3, 100.0),
        steps=30_000,
        tol=2e-3,
    ),
    "KwonDL": Known(
        problems.rank1,
        lambda speed: methods.KwonDL(0.2 * speed, 0.3, 100.0, 20),
        steps=2000,
        tol=3e-3,
    ),
    "KwonSL": Known(
        problems.rank1,
        lambda speed: methods.KwonSL(2e-3 * speed, 0.3, 100.0),
        steps=40_000,
        tol=3e-3,
    ),
    "MEHA": Known(
        problems.rank1,
        lambda speed: methods.MEHA(0.05 * speed, 0.05, 0.1),
        steps=20_000,
        tol=2e-3,
    ),
    "LuMei": Known(
        problems.rank1,
        lambda speed: methods.LuMei(0.02, methods.NestedSolver(4e-3 * speed, 4e-3)),
        steps=5000,
        tol=5e-3,
        adaptive=True,
    ),
    "BVFSM": Known(
        problems.sine,
        lambda speed: methods.BVFSM(0.02 * speed),
        steps=3000,
        tol=4e-2,
        adaptive=True,
    ),
    "Barrier": Known(
        problems.couple1,
        lambda speed: methods.Barrier(0.2 * speed, t=1e-6),
        steps=60,
        tol=1e-6,
        adaptive=True,
    ),
    "BLOCC": Known(
        problems.couple1,
        lambda speed: methods.BLOCC(0.05 * speed, 0.25, 1.0, lower_steps=10, y_steps=3),
        steps=300,
        tol=1e-9,
    ),
    "LVHBA": Known(
        problems.couple1,
        lambda speed: methods.LVHBA(0.01 * speed, 0.05, 0.01, proximal=0.5, dual_proximal=0.5),
        steps=50_000,
        tol=1e-5,
    ),
    "GDA": Known(
        problems.mmcouple, lambda speed: methods.GDA(0.2 * speed, 0.5, 0.2), steps=400, tol=1e-9
    ),
    "MGD": Known(
        problems.mmcouple, lambda speed: methods.MGD(0.2 * speed, 0.5, 0.5), steps=100, tol=1e-9
    ),
    "AugmentedLagrangian": Known(
        problems.upcon,
        lambda speed: methods.AugmentedLagrangian(following(0.02 * speed)),
        steps=3000,
        tol=1e-9,
    ),
    "QuadraticPenalty": Known(
        problems.upcon,
        lambda speed: methods.QuadraticPenalty(following(1e-3 * speed)),
        steps=3000,
        tol=4e-3,
    ),
    "DSIGD": Known(
        problems.halfplane,
        lambda speed: methods.DSIGD(speed),
        steps=60,
        tol=5e-3,
        random=True,
        adaptive=True,
    ),
    "SSIGD": Known(
        problems.halfplane,
        lambda speed: methods.SSIGD(0.3 * speed),
        steps=200,
        tol=5e-3,
        random=True,
        adaptive=True,
    ),
    "DSBLO": Known(
        problems.halfplane,
        lambda speed: methods.DSBLO(cap=10 / speed, damping=10 / speed),
        steps=500,
        tol=3e-2,
        random=True,
        adaptive=True,
    ),
    "PIGD": Known(
        problems.halfplane,
        lambda speed: methods.PIGD(0.1 * speed),
        steps=300,
        tol=1e-2,
        random=True,
        adaptive=True,
    ),
    "O2NC": Known(
        problems.halfplane,
        lambda speed: methods.O2NC(1e-3 * speed, 1e-2),
        steps=3000,
        tol=0.6,
        random=True,
        adaptive=True,
    ),
    "ZerothO2NC": Known(
        problems.halfplane,
        lambda speed: methods.ZerothO2NC(1e-3 * speed, 1e-2),
        steps=3000,
        tol=0.6,
        random=True,
        adaptive=True,
    ),
    "UpperBarrier": Known(
        problems.upcon,
        lambda speed: methods.UpperBarrier(following(2e-4 * speed), t=1e-3),
        steps=20_000,
        tol=1e-3,
    ),
    "IGFM": Known(
        problems.rank1,
        lambda speed: methods.IGFM(
            0.3 * speed, hypergrad.SwitchingGradient(0.05, 0.25, 1e-3, steps=500), 0.1
        ),
        steps=150,
        tol=0.03,
        random=True,
        adaptive=True,
    ),
    "ChenLiSo": Known(
        problems.rank1,
        lambda speed: methods.ChenLiSo(0.3 * speed, hypergrad.PenalisedSelection(50.0), 0.1),
        steps=150,
        tol=0.01,
        random=True,
        adaptive=True,
    ),
    "SuperquantileGibbs": Known(
        problems.circle,
        lambda speed: methods.SuperquantileGibbs(0.1 * speed, lower.MALA(100, 10)),
        steps=100,
        tol=0.3,
        random=True,
        adaptive=True,
    ),
    "SMBG": Known(
        problems.well_a,
        lambda speed: methods.SMBG(0.5 * speed, 0.3, 5, linear.Neumann(20, 0.3)),
        steps=60,
        tol=1e-12,
    ),
    "TPHSD": Known(
        problems.well_ns,
        lambda speed: methods.TPHSD(schedules.Polynomial(0.5 * speed, 0.8)),
        steps=3000,
        tol=2e-5,
        adaptive=True,
    ),
}
