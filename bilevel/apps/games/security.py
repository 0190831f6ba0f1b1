"""Security games: where to guard, when the attacker sees the odds."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog


class Payoffs(NamedTuple):
    """What an attack on a target is worth, covered (first column) or not (second)."""

    attacker: Float[np.ndarray, "targets 2"]
    defender: Float[np.ndarray, "targets 2"]


class Commitment(NamedTuple):
    """A coverage to commit to, and what follows."""

    coverage: Float[np.ndarray, " targets"]
    target: int  # that the attacker takes; of equal ones the defender's favourite
    value: float  # the defender's
    attacker_value: float


def commit(payoffs: Payoffs, resources: float = 1.0) -> Commitment:
    """The coverage that is best for the defender, by one linear program a target.

    Maximises the defender's value of target t over coverages to which t is the attacker's best
    answer, for every t; ties are the defender's (strong Stackelberg equilibrium).

    Raises:
        ValueError: shapes do not fit.
    """
    attacker, defender = (np.asarray(table, float) for table in payoffs)
    n = len(attacker)
    if attacker.shape != (n, 2) or defender.shape != (n, 2):
        raise ValueError("both payoffs need a row a target: what it is worth covered, uncovered.")
    slope, base = attacker[:, 0] - attacker[:, 1], attacker[:, 1]
    found = []
    for t in range(n):
        rows = np.vstack([np.diag(slope) - slope[t] * np.eye(n)[t], np.ones(n)])
        room = np.append(base[t] - base, resources)
        gain = np.eye(n)[t] * (defender[t, 0] - defender[t, 1])
        solved = linprog(-gain, rows, room, bounds=[(0, 1)] * n)
        if solved.status == 0:
            value = float(gain @ solved.x + defender[t, 1])
            found.append(Commitment(solved.x, t, value, float(base[t] + slope[t] * solved.x[t])))
    return max(found, key=lambda one: one.value)
