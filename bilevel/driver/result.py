"""What `solve` returns."""

import enum
import html
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bilevel.certificates import Certificate
from bilevel.driver.answer import FollowerCertificate
from bilevel.errors import Failed
from bilevel.files import needs
from bilevel.oracles import Price
from bilevel.typing import Lower, Upper


class Outcome(enum.Enum):
    """How a run ended."""

    FINISHED = "finished"  # all steps were made, or none lowers what the method minimises
    CONVERGED = "converged"  # the certificate fell below tol, or to what float64 can tell
    STALLED = "stalled"  # ended short of a stationary x: rounding hides what helps, or the search
    STOPPED = "stopped"  # a callback asked for it
    DIVERGED = "diverged"  # a variable is no longer finite
    INTERRUPTED = "interrupted"  # Ctrl-C
    OUT_OF_DATA = "out of data"  # an iterator ended
    NOT_OPTIMAL = "follower not optimal"  # y is not the lower problem's answer to x
    INFEASIBLE = "infeasible"  # a constraint does not hold
    UNBOUNDED = "unbounded"  # the upper loss falls for ever, so there is no solution


class Status(NamedTuple):
    """How a run ended (`outcome`), and what to do about it."""

    outcome: Outcome
    advice: str  # what happened and what to try, in sentences

    @property
    def ok(self) -> bool:
        """Whether the result is what was asked for."""
        return self.outcome in (Outcome.FINISHED, Outcome.CONVERGED, Outcome.STOPPED)

    def __str__(self) -> str:
        return f"{self.outcome.value}: {self.advice}"


class SolveError(Failed):
    """Raised by `solve(..., throw=True)` when the status is not ok; carries the result."""

    def __init__(self, result: "Result"):
        super().__init__(str(result.status))
        self.result = result


class Stats(NamedTuple):
    """What a run cost."""

    steps: int  # updates made by this call
    seconds: float  # wall time they took, compilation included
    compile_seconds: float  # of which compilation; no step is counted
    steps_per_second: float  # after that; NaN where there was no step
    price: Price  # oracle calls, in batches
    samples: Mapping[str, int]  # rows drawn at each level, where they are counted
    notes: tuple[str, ...] = ()  # what went wrong without stopping the run


class Best(NamedTuple):
    """Keep the iterate with the smallest (or largest) value of a metric."""

    metric: str
    largest: bool = False


class Result(NamedTuple):
    """Where a run ended and how it got there.

    `history` maps names to arrays with a row at step 0 and every `log_every` steps: `step`,
    `seconds`, what the method reports (`upper`, `hypergrad_norm`, `lower_grad_norm`, ...; NaN at
    step 0) and the metrics. `pandas.DataFrame(result.history)` takes it as it is. A problem that
    `solve` searched globally has no state, a row for each stage, and a `FollowerCertificate`.
    """

    x: Upper
    y: Lower
    history: dict[str, np.ndarray]
    status: Status  # how it ended, and what to try
    certificate: Certificate | FollowerCertificate | None  # how far (x, y) is from a solution
    state: Any  # of the method after the last step
    stats: Stats  # steps, seconds and oracle calls

    def __repr__(self) -> str:
        last = {name: column[-1] for name, column in self.history.items() if len(column)}
        shown = ", ".join(f"{name}={value:.6g}" for name, value in last.items())
        return f"Result({self.status.outcome.value} after {self.stats.steps} steps: {shown})"

    def to_pandas(self) -> Any:
        """The history as a `pandas.DataFrame`, with the steps as its index.

        Raises:
            ImportError: pandas is not installed.
        """
        pandas = needs("pandas", extra="pandas", what="tables")
        return pandas.DataFrame(self.history).set_index("step")

    def plot(self, *columns: str, ax: Any = None) -> Any:
        """Draw columns of the history over the steps; on a log axis where all are positive.

        Args:
            columns: names in the history; when absent, the upper loss, or the metrics.
            ax: matplotlib axes to draw on; new ones when absent.

        Returns:
            The axes.

        Raises:
            ValueError: the history has no such column.
        """
        from matplotlib import pyplot

        steps = self.history["step"]
        named = columns or tuple(name for name in ("upper",) if name in self.history)
        named = named or tuple(name for name in self.history if name not in ("step", "seconds"))
        for name in named:
            if name not in self.history:
                raise ValueError(f"the history has no {name!r}; it has {', '.join(self.history)}.")
        ax = pyplot.subplots(layout="constrained")[1] if ax is None else ax
        for name in named:
            ax.plot(steps, self.history[name], label=name)
        if all(np.nanmin(self.history[name], initial=np.inf) > 0 for name in named):
            ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.legend()
        return ax

    def _repr_html_(self) -> str:
        """What a notebook shows: how the run ended, the last row, the certificate."""
        last = {name: column[-1] for name, column in self.history.items() if len(column)}
        told = {
            "status": str(self.status),
            **{name: f"{value:.6g}" for name, value in last.items()},
            "certificate": "none" if self.certificate is None else str(self.certificate),
        }
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in told.items()
        )
        return f"<table>{rows}</table>"

    def __str__(self) -> str:
        lines = [repr(self), f"  status: {self.status}"]
        if self.certificate is not None:
            lines.append(f"  certificate: {self.certificate}")
        lines += [f"  note: {note}" for note in self.stats.notes]
        return "\n".join(lines)


def advice(
    outcome: Outcome, method: Any, step: int, row: Mapping[str, float], *, exhausted: bool = False
) -> str:
    """A sentence on what happened and what to try."""
    words = {"upper": "upper loss", "lower_grad_norm": "lower gradient"}
    where = ", ".join(f"{told} {row[name]:.3g}" for name, told in words.items() if name in row)
    return {
        Outcome.FINISHED: (
            f"after step {step} no step lowers what {type(method).__name__} minimises ({where})."
            if exhausted
            else f"all steps made ({where})."
        ),
        Outcome.CONVERGED: (
            f"after step {step} rounding leaves no step that is certain to lower the upper loss."
            if exhausted
            else "the certificate's stationarity is below tol."
        ),
        Outcome.STALLED: (
            f"after step {step} rounding leaves no step that is certain to lower the upper loss "
            f"({where}), and x was not measured to be stationary. In single precision, enable x64 "
            "with jax.config.update('jax_enable_x64', True), pass x0, y0 and data in float64, and "
            "start at this result to go on."
        ),
        Outcome.STOPPED: f"a callback stopped the run at step {step}.",
        Outcome.DIVERGED: (
            f"a variable became NaN or infinite soon after step {step}; the result holds the "
            f"iterate of that step. Lower the step sizes of {method!r}: y steps to at most 1/L "
            "(bl.certificates.probe(problem, x0, y0, batch).L tells L), then x steps to a tenth of "
            "those."
        ),
        Outcome.INTERRUPTED: f"stopped from the keyboard after step {step}; the result is valid.",
        Outcome.OUT_OF_DATA: (
            f"the data iterator ended after step {step}. Give an iterable that can be started "
            "again (a loader, not a generator), or fewer steps."
        ),
    }[outcome]
