"""What the front door says of a small problem's point: feasible, y an answer to x, x the best."""

import math
from typing import Any, NamedTuple

from bilevel.certificates import Certificate

FEASIBLE = 1e-6  # largest violation of a constraint
GAP = 1e-6  # times the scale of the lower loss: largest gap of an answer


class FollowerCertificate(NamedTuple):
    """What is known of a point of a small problem: the constraints, y as an answer to x, and x.

    The gap is `g(x, y) − min g(x, ·)` with the minimum taken over the lower set from many starts: a
    search that is global in practice on a few variables. It is a proof where `proved` is true.
    """

    upper: float  # the upper loss
    lower: float  # the lower loss
    lower_best: float  # the least lower loss that was found at this x
    better: Any  # the y where it was found, a tree like y
    upper_violation: float  # largest of an upper constraint
    lower_violation: float  # largest of a lower constraint
    starts: int  # of the lower problem at this x
    minima: int = 1  # different values of the lower loss at which these starts ended
    traps: int = 0  # points given up: the lower conditions held, and a better answer was elsewhere
    scale: float = 1.0  # of the gap: how much the lower loss moves with y, at most 1 + |g|
    falls: Any = None  # a direction in which y goes to infinity as the lower loss falls, like y
    proved: bool = False  # a quadratic lower loss, convex on linear constraints, solved
    stationary: bool | None = None  # no small step of x lowers f, y answering; None: not looked at
    candidates: int = 0  # points that x is the best of; 0: no search was made
    upper_falls: Any = None  # a direction of x along which the upper loss falls for ever, or None
    pessimistic: float | None = None  # the largest upper loss among equal answers, where it differs
    optimistic: float | None = None  # the least among them, where y is the worst and it differs
    local: Certificate | None = None  # of the method, where one was run
    bound: float | None = None  # no allowed point has a smaller upper loss: proved, where known

    @property
    def gap(self) -> float:
        """`g(x, y) − min g(x, ·)`; infinite where there is no minimum, or none was found."""
        known = math.isfinite(self.lower_best) and self.falls is None
        return max(self.lower - self.lower_best, 0.0) if known else math.inf

    @property
    def violation(self) -> float:
        """The largest violation of a constraint, of x or of y; 0 where all hold."""
        return max(self.upper_violation, self.lower_violation, 0.0)

    @property
    def feasible(self) -> bool:
        return self.violation <= FEASIBLE

    @property
    def optimal(self) -> bool:
        """Whether the gap is at most `1e-6 scale`."""
        return bool(self.gap <= GAP * self.scale)

    @property
    def bounded(self) -> bool:
        """Whether no direction of x was found along which the upper loss falls for ever."""
        return self.upper_falls is None

    @property
    def ok(self) -> bool:
        """Whether the point solves the problem as far as it was looked at.

        The constraints hold, y is the follower's answer, no small step of x lowers the upper loss
        (y answering), and no direction of x was found along which that falls for ever.
        """
        solves = self.feasible and self.optimal and self.bounded
        return solves and self.stationary is not False

    def summary(self) -> str:
        """What the numbers say, in a few sentences."""
        said = [self._constraints(), self.about_y()]
        if self.pessimistic is not None:
            said.append(
                f"The follower has other answers that are as good. y is the leader's favourite "
                "(optimistic); at the worst of them that was found the upper loss is "
                f"{self.pessimistic:.6g} (pessimistic)."
            )
        if self.optimistic is not None:
            said.append(
                "The follower has other answers that are as good. y is the worst of them for the "
                "leader (pessimistic); at the best of them that was found the upper loss is "
                f"{self.optimistic:.6g} (optimistic)."
            )
        if self.traps:
            plural = "s" if self.traps > 1 else ""
            said.append(
                f"{self.traps} point{plural} given up where the lower conditions held but the "
                "follower had a better answer."
            )
        said.append(self.about_x())
        if self.local is not None:
            said.append(self.local.summary())
        return " ".join(part for part in said if part)

    def _constraints(self) -> str:
        worst = max(self.upper_violation, self.lower_violation)
        if self.feasible:
            return f"Constraints hold to {max(worst, 0):.1e}."
        return f"A constraint is violated by {worst:.2e}, so the point is not feasible."

    def about_y(self) -> str:
        """What is known of y: proved, searched, or not the follower's answer."""
        how = f"a global search of the lower problem at this x, from {self.starts} starts"
        if self.falls is not None:
            return (
                "y: no answer; the lower problem has no minimum at this x, as the lower loss falls "
                "for ever as y goes to infinity (`certificate.falls` is the direction)."
            )
        if not math.isfinite(self.lower_best):
            return f"y: the follower's gap is not known; {how}, found no minimum."
        if not self.optimal:
            return (
                f"y is not the follower's answer: {how}, found a lower loss of "
                f"{self.lower_best:.6g} against {self.lower:.6g}, a gap of {self.gap:.2e}."
            )
        if self.proved:
            return (
                f"y: proved; the lower problem is a convex quadratic program at this x, and the "
                f"follower's gap is {self.gap:.1e}."
            )
        several = f" that ended in {self.minima} minima" if self.minima > 1 else ""
        return f"y: searched; the follower's gap is {self.gap:.1e} ({how}{several})."

    def about_x(self) -> str:
        """What is known of x: stationary or not, the best of how many points, bounded or not."""
        said = []
        if self.bound is not None:
            said.append(
                f"no allowed point has an upper loss below {self.bound:.6g}: proved, a gap of "
                f"{max(self.upper - self.bound, 0.0):.1e}"
            )
        if self.stationary is not None:
            said.append("stationary" if self.stationary else "not stationary")
        if self.candidates > 1:
            said.append(f"the best of {self.candidates} points")
        elif self.candidates == 1:
            said.append("reached from one start (a better x elsewhere was not looked for)")
        if self.upper_falls is not None:
            said.append("the upper loss falls for ever along a direction of x (`upper_falls`)")
        elif self.candidates:
            said.append("no direction of x was found along which the upper loss falls for ever")
        return f"x: {', '.join(said)}." if said else ""

    def __str__(self) -> str:
        return self.summary()
