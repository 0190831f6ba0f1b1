"""What every method looks like, and the refusal of problems a method is not made for."""

import abc
import dataclasses
import enum
import math
from typing import Any, ClassVar, Protocol, Self

from jaxtyping import Scalar

from bilevel import fields
from bilevel.fields import Checked
from bilevel.methods import references
from bilevel.methods.references import Paper
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure
from bilevel.schedules import PolynomialCount, shown
from bilevel.typing import Lower, Upper

State = Any  # a NamedTuple with fields x, y and k (steps done)


class Constants(Protocol):
    """What step sizes are made of; `certificates.probe` measures it."""

    @property
    def L(self) -> float:
        """Largest eigenvalue of the lower Hessian `∂²g/∂y²`."""
        ...

    @property
    def mu(self) -> float:
        """Smallest eigenvalue of the lower Hessian."""
        ...

    @property
    def cross(self) -> float:
        """Norm of the cross derivative `∂²g/∂x∂y`."""
        ...

    @property
    def upper_L(self) -> float:
        """Largest curvature of the upper loss in y."""
        ...

    @property
    def hyper_L(self) -> float:
        """Largest curvature of the hyper-objective `f(x, y*(x))`."""
        ...

    @property
    def hyper_mu(self) -> float:
        """Smallest curvature of the hyper-objective; negative where it is not convex."""
        ...


class LowerAssumption(enum.Enum):
    """What the theory of a method asks of the lower loss, as a function of y."""

    STRONGLY_CONVEX = "strongly convex"
    CONVEX = "convex"
    DOMINATED = "gradient-dominated (Polyak-Łojasiewicz)"
    NONCONVEX = "nonconvex"


def count(default: Any, *, grows: bool = False) -> Any:
    """A static field that must be a whole number of at least 1.

    Args:
        default: its default value; `None` for one that may be left to the data.
        grows: a `PolynomialCount` is allowed, too.
    """
    return fields.count(default, also=PolynomialCount if grows else None)


class Unsupported(ValueError):
    """A method was given a problem it is not made for."""


class AbstractMethod(Checked):
    """One algorithm: how it starts, and how it steps on the samples it is handed.

    A concrete method is final, holds its settings as fields, and declares what problem
    structure it handles. Numbers are array leaves: a new step size compiles nothing, and a sweep
    is one `vmap`.
    """

    supports: ClassVar[frozenset[Structure]]
    paper: ClassVar[Any]  # a key of references.bib; a `Paper` in a method outside this package
    status: ClassVar[str] = "stable"  # "experimental": not checked against its paper in every part
    memory: ClassVar[str]  # what the state holds, in copies of x and y
    rate: ClassVar[str] = ""  # samples until E‖∇l‖² ≤ ε, l nonconvex, where one is claimed
    below: ClassVar[LowerAssumption] = LowerAssumption.STRONGLY_CONVEX
    samples: ClassVar[bool] = True  # its theory allows for mini-batches

    @abc.abstractmethod
    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> State:
        """The state before the first step, in buffers of its own."""

    @abc.abstractmethod
    def step(self, problem: Problem, state: State, batch: Batch) -> tuple[State, dict[str, Scalar]]:
        """One update of x: the next state, and what a person would look at."""

    @abc.abstractmethod
    def draws(self, problem: Problem) -> Draws:
        """How many upper and lower batches one step consumes."""

    @abc.abstractmethod
    def price(self, problem: Problem) -> Price:
        """The oracle calls of one step."""

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """The method with the schedules of its theory, scaled to a problem.

        Args:
            constants: from `certificates.probe`, or known.
            steps: the horizon K for which constant steps are chosen; they decay when absent.

        Raises:
            NotImplementedError: the method has no theory of its own.
        """
        raise NotImplementedError(f"{cls.__name__} tells no step sizes; choose them by hand.")

    @classmethod
    def reference(cls) -> Paper:
        """The paper that the method comes from."""
        return references.paper(cls.paper) if isinstance(cls.paper, str) else cls.paper

    def check(self, problem: Problem) -> None:
        """Refuse a problem with structure this method does not handle.

        Raises:
            Unsupported: naming the structure, and the methods that handle it.
        """
        lacking = self.unsupported(problem)
        if not lacking:
            return
        able = sorted(m.__name__ for m in all_methods() if not m.unsupported(problem))
        handled = sorted(kind.value for kind in self.supports)
        raise Unsupported(
            f"{type(self).__name__} cannot solve this problem: {' and '.join(lacking)}, "
            f"and {type(self).__name__} handles only {', '.join(handled) or 'free variables'}. "
            f"Methods that handle it: {', '.join(able) or 'none yet'}."
        )

    @classmethod
    def unsupported(cls, problem: Problem) -> list[str]:
        """What the problem declares and this method does not handle, in words."""
        return [words for kinds, words in problem.structure() if not kinds & cls.supports]

    def for_data(self, batches: Batch) -> Self:
        """The method with the settings that it reads from the data; `solve` and `run` ask for it.

        Args:
            batches: how many batches make up the data of each level, `data.batches`; `None` where
                they have no end.
        """
        return self

    def check_parts(self, parts: Batch) -> None:
        """Refuse data whose batches this method cannot use.

        Args:
            parts: how many fixed batches each level has; `None` where batches are new at each draw.
        """

    def __repr__(self) -> str:
        held = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return f"{type(self).__name__}({', '.join(f'{n}={_shown(v)}' for n, v in held)})"


class LoopMethod(AbstractMethod):
    """A method that is the loop of its family with the blocks chosen."""

    @property
    @abc.abstractmethod
    def loop(self) -> Any:
        """The loop: an object with `draws`, `price`, `init` and `step`."""

    def draws(self, problem: Problem) -> Draws:
        return self.loop.draws(problem)

    def price(self, problem: Problem) -> Price:
        return self.loop.price(problem)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> State:
        return self.loop.init(problem, x0, y0, key)

    def step(self, problem: Problem, state: State, batch: Batch) -> tuple[State, dict[str, Scalar]]:
        return self.loop.step(problem, state, batch)


def series_terms(constants: Constants, bias: float) -> int:
    """Terms t of a Neumann series with steps 1/L such that `(1 − μ/L)^t ≤ bias`."""
    shrink = 1 - constants.mu / constants.L
    return max(1, math.ceil(math.log(bias) / math.log(shrink))) if shrink > 0 else 1


def all_methods() -> list[type[AbstractMethod]]:
    """Every concrete method that has been imported."""
    return [m for m in _descendants(AbstractMethod) if not getattr(m, "__abstractmethods__", None)]


def _descendants(cls: type) -> list[type]:
    return [d for child in cls.__subclasses__() for d in (child, *_descendants(child))]


def _shown(value: Any) -> str:
    return shown(value) if hasattr(value, "dtype") else repr(value)
