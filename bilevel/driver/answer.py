"""What the front door says of a small problem's point: is it feasible, does y answer x."""

import math
from typing import Any, NamedTuple

from bilevel.certificates import Certificate

FEASIBLE = 1e-6  # largest violation of a constraint
GAP = 1e-3  # times 1 + |g|: largest gap of an answer


class FollowerCertificate(NamedTuple):
    """Whether y answers x: the constraints at (x, y), and how far y is from the follower's best.

    The gap is `g(x, y) − min g(x, ·)` with the minimum taken over the lower set from many starts: a
    search that is global in practice on a few variables, and not a proof.
    """

    upper: float  # the upper loss
    lower: float  # the lower loss
    lower_best: float  # the least lower loss that was found at this x
    better: Any  # the y where it was found, a tree like y
    upper_violation: float  # largest of an upper constraint
    lower_violation: float  # largest of a lower constraint
    starts: int  # of the lower problem at this x
    traps: int = 0  # points given up: the lower conditions held, and a better answer was elsewhere
    local: Certificate | None = None  # of the method, where one was run

    @property
    def gap(self) -> float:
        """`g(x, y) − min g(x, ·)`; infinite where no minimum was found."""
        return (
            max(self.lower - self.lower_best, 0.0) if math.isfinite(self.lower_best) else math.inf
        )

    @property
    def feasible(self) -> bool:
        return max(self.upper_violation, self.lower_violation) <= FEASIBLE

    @property
    def optimal(self) -> bool:
        """Whether the gap is at most `1e-3 (1 + |g|)`."""
        return self.gap <= GAP * (1 + abs(self.lower))

    @property
    def ok(self) -> bool:
        return self.feasible and self.optimal

    def summary(self) -> str:
        """What the numbers say, in a few sentences."""
        worst = max(self.upper_violation, self.lower_violation)
        said = [f"Constraints hold to {max(worst, 0):.1e}." if self.feasible else ""]
        if not self.feasible:
            said = [f"A constraint is violated by {worst:.2e}, so the point is not feasible."]
        how = f"a global search of the lower problem at this x, from {self.starts} starts"
        if not math.isfinite(self.lower_best):
            said.append(f"The follower's gap is not known: {how}, found no minimum.")
        elif self.optimal:
            said.append(f"The follower's gap is {self.gap:.1e} ({how}).")
        else:
            said.append(
                f"y is not the follower's answer: {how}, found a lower loss of "
                f"{self.lower_best:.6g} against {self.lower:.6g}, a gap of {self.gap:.2e}."
            )
        if self.traps:
            plural = "s" if self.traps > 1 else ""
            said.append(
                f"{self.traps} point{plural} given up where the lower conditions held but the "
                "follower had a better answer."
            )
        if self.local is not None:
            said.append(self.local.summary())
        return " ".join(said)

    def __str__(self) -> str:
        return self.summary()
