"""Methods with steps that work, by name."""

from typing import NamedTuple

import optax

from bilevel import linear, methods
from bilevel.methods import AbstractMethod
from bilevel.schedules import as_schedule
from bilevel.updates import FromOptax


class Setting(NamedTuple):
    """A method, and the problem it is for."""

    method: AbstractMethod
    adapt: str  # as in `problem`
    drawn: int | None  # tasks of a step; all if `None`


METHODS = ("SOBA", "BiOAID", "BSVRBv1", "BSVRBv2", "RSVRB", "MAML", "iMAML")


def settings(
    name: str,
    m: int,
    *,
    lipschitz: float,
    drawn: int = 5,
    rate: float = 2e-3,
    adapt_steps: int = 5,
    adapt_rate: float = 0.1,
) -> Setting:
    """SOBA and BiOAID move all m heads at a step, BSVRBv1, BSVRBv2 and RSVRB those of a few tasks.

    BSVRBv1 and RSVRB keep a dense Hessian of each head, and RSVRB its cross derivative with x as
    well: they are for small heads and few features. MAML descends through `adapt_steps` gradient
    steps on the whole network; iMAML takes the implicit derivative at their end.

    Args:
        lipschitz: largest curvature of a lower loss in its head.
        drawn: tasks of a step, of m.
        rate: of Adam on x.
        adapt_steps, adapt_rate: of MAML and iMAML.

    Raises:
        ValueError: no such name, or `drawn` is not between 1 and m.
    """
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; it is one of {', '.join(METHODS)}.")
    if not 1 <= drawn <= m:
        raise ValueError(f"drawn is {drawn}; a number of tasks from 1 to {m} is needed.")
    x_update, step = FromOptax(optax.adam, rate), 1 / lipschitz
    # Heads that were not drawn go on along their last direction, so a step is a share of 1/L.
    slow, a = step * drawn / m, 0.9
    storm = as_schedule(0.1)  # correction 1 − a, as γ of the theory is large
    if name == "SOBA":
        return Setting(methods.SOBA(x_update, step, step), "head", None)
    if name == "BiOAID":
        return Setting(methods.BiOAID(x_update, step, linear.CG(10), 10), "head", None)
    if name == "BSVRBv1":
        return Setting(methods.BSVRBv1(x_update, slow, a, a, storm), "head", drawn)
    if name == "BSVRBv2":
        return Setting(methods.BSVRBv2(x_update, slow, slow, a, a, storm), "head", drawn)
    if name == "RSVRB":
        return Setting(methods.RSVRB(x_update, slow, a), "head", drawn)
    if name == "MAML":
        maml = methods.BiOITD(x_update, adapt_rate, adapt_steps, warm=False)
        return Setting(maml, "all", None)
    imaml = methods.BiOAID(x_update, adapt_rate, linear.CG(5), adapt_steps)
    return Setting(imaml, "all", None)
