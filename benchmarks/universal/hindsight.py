"""Single methods with steps chosen by someone who knows the problem, all with the same budget.

Each is the call `bl.solve(problem, method, x0, y0, data=data)` with its 1000 steps, stopped after
`CAP` seconds of the processor. Best in hindsight is the one that solves an instance in the fewest
seconds; to know which, all have to be run.
"""

import time
from collections.abc import Callable

import bilevel as bl
from benchmarks.universal.case import Case
from benchmarks.universal.rivals import CAP
from bilevel.linear import FixedPoint
from bilevel.methods import (
    BLOCC,
    BOME,
    BVFSM,
    DSIGD,
    F2SA,
    GPBGD,
    MAID,
    MEHA,
    RSVRB,
    SMBG,
    SOBA,
    VPBGD,
    AbstractMethod,
    AmIGO,
    AugmentedLagrangian,
    Barrier,
    BSVRBv1,
    StocBiO,
)

# The upper losses of planted problems are means over n entries, so steps of x grow with n. Lower
# losses have a curvature of at most 30 where it is not 1.
STIFF = 1 / 30


def _amigo(n: int, y: float) -> AmIGO:
    return AmIGO(n / 4, y, FixedPoint(10, y))


METHODS: dict[str, Callable[[int], list[AbstractMethod]]] = {
    "free": lambda n: [MAID(), _amigo(n, STIFF), SOBA(n / 8, STIFF, STIFF)],
    "on_simplex": lambda n: [MAID(), _amigo(n, 0.5), SOBA(n / 8, 0.5, 0.5)],
    "box": lambda n: [Barrier(t=1e-5, max_step=1e4), SMBG(n / 8, 0.25), MEHA(n / 8, 0.25, 0.25)],
    "polyhedron": lambda n: [Barrier(t=1e-5, max_step=1e4), DSIGD(), BLOCC(n / 40)],
    "linear": lambda n: [Barrier(t=1e-5, max_step=1e4), Barrier(t=1e-3), BLOCC()],
    "tolls": lambda n: [Barrier(t=1e-5, max_step=1e4), Barrier(t=1e-3)],
    "entropic": lambda n: [Barrier(t=1e-5, max_step=1e4), Barrier(t=1e-8, max_step=1e4)],
    "ball": lambda n: [Barrier(t=1e-5, max_step=1e4), BLOCC(n / 40)],
    "upper_coupled": lambda n: [
        AugmentedLagrangian(MAID(), period=10, growth=2.0),
        AugmentedLagrangian(_amigo(n, 0.5), penalty=1.0, period=50),
    ],
    "flat": lambda n: [BOME(n / 8, n / 8, 0.3), GPBGD(n / 40, 0.03), VPBGD(n / 40, 0.03, 0.3)],
    "wells": lambda n: [MAID(), BVFSM(), SMBG(n / 16, 0.1)],
    "own_hypergradient": lambda n: [_amigo(n, STIFF), StocBiO(n / 4, STIFF)],
    "own_step": lambda n: [_amigo(n, STIFF), StocBiO(n / 4, STIFF)],
    "finite_sum": lambda n: [SOBA(3.0, 0.1, 0.1), F2SA(1.0, 0.1, 0.1)],
    "blocks": lambda n: [RSVRB(), BSVRBv1()],
    "mixture": lambda n: [F2SA(1.0, 1e-3, 1e-3)],
}  # fmt: skip


def run(case: Case, method: AbstractMethod) -> tuple:
    """A method with the budget of all; it claims a solution where `bl.solve` does."""
    begin = time.process_time()
    result = bl.solve(
        case.problem,
        method,
        case.x0,
        case.y0,
        data=case.data,
        progress=False,
        callbacks=[lambda *_: time.process_time() - begin > CAP],
    )
    claimed = result.status.outcome is bl.Outcome.CONVERGED
    return result.x, result.y, claimed, repr(method)
