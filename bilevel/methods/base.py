"""The base class of all methods, and the error for problems that a method cannot solve."""

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
    """Constants of a problem that determine step sizes; `certificates.probe` measures them."""

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
    """The assumption of a method's theory on the lower loss, as a function of y."""

    STRONGLY_CONVEX = "strongly convex"
    CONVEX = "convex"
    DOMINATED = "gradient-dominated (Polyak-Łojasiewicz)"
    NONCONVEX = "nonconvex"


def count(default: Any, *, grows: bool = False) -> Any:
    """A static field for an integer of at least 1. The method checks the value.

    Args:
        default: its default value; `None` if it may be left to the data.
        grows: whether a `PolynomialCount` is allowed as well.
    """
    return fields.count(default, also=PolynomialCount if grows else None)


class Unsupported(ValueError):
    """Raised when a method does not support the structure of a problem."""


class AbstractMethod(Checked):
    """One algorithm: its initial state and its step on given samples.

    A concrete method is final, has its settings as fields, and declares which problem structure
    it handles. Numbers are array leaves: a new step size does not recompile, and a sweep is one
    `vmap`. Settings of one name mean the same in every method:

    - `x_update`, `y_update`: how x and y move: a step size, a schedule, or any update of
      `bilevel.updates`; `v_update` moves the adjoint, `z_update` the second lower copy,
      `dual_update` the multipliers.
    - `lower_steps`: steps of y for one step of x.
    - `linear`: solver of the adjoint system, of `bilevel.linear`.
    - `solver`: solver of the lower problem, of `bilevel.lower`.
    """

    supports: ClassVar[frozenset[Structure]] = frozenset()  # free variables alone
    paper: ClassVar[Any]  # a key of references.bib; a `Paper` in a method outside this package
    status: ClassVar[str] = "stable"  # "experimental": not checked against its paper in every part
    memory: ClassVar[str]  # size of the state, in copies of x and y
    rate: ClassVar[str] = ""  # samples until E‖∇l‖² ≤ ε, l nonconvex, where one is claimed
    below: ClassVar[LowerAssumption] = LowerAssumption.STRONGLY_CONVEX
    samples: ClassVar[bool] = True  # whether its theory allows mini-batches

    @abc.abstractmethod
    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> State:
        """The state before the first step, in new buffers."""

    @abc.abstractmethod
    def step(self, problem: Problem, state: State, batch: Batch) -> tuple[State, dict[str, Scalar]]:
        """One update of x: the next state, and a dict of scalars to log."""

    @abc.abstractmethod
    def draws(self, problem: Problem) -> Draws:
        """The number of upper and lower batches that one step uses."""

    @abc.abstractmethod
    def price(self, problem: Problem) -> Price:
        """The oracle calls of one step."""

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """The method with the schedules of its theory, scaled to a problem.

        Args:
            constants: measured by `certificates.probe`, or known.
            steps: the horizon K. With it, step sizes are constant; if `None`, they decay.

        Raises:
            NotImplementedError: the method has no theory of its own.
        """
        raise NotImplementedError(f"{cls.__name__} tells no step sizes; choose them by hand.")

    @classmethod
    def reference(cls) -> Paper:
        """The paper of the method."""
        return references.paper(cls.paper) if isinstance(cls.paper, str) else cls.paper

    def check(self, problem: Problem) -> None:
        """Raise an error if the problem has structure that this method does not handle.

        Raises:
            Unsupported: with the structure and the methods that handle it in the message.
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
        """Descriptions of what the problem declares and this method does not handle."""
        return [words for kinds, words in problem.structure() if not kinds & cls.supports]

    def for_data(self, batches: Batch) -> Self:
        """The method with the settings that it reads from the data; `solve` and `run` ask for it.

        Args:
            batches: how many batches make up the data of each level, `data.batches`; `None` where
                they have no end.
        """
        return self

    def check_parts(self, parts: Batch) -> None:
        """Raise an error if this method cannot use the batches of the data.

        Args:
            parts: number of fixed batches of each level; `None` if every draw makes a new batch.
        """

    def __repr__(self) -> str:
        held = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return f"{type(self).__name__}({', '.join(f'{n}={_shown(v)}' for n, v in held)})"


class LoopMethod(AbstractMethod):
    """A method defined by the shared loop of its family and a choice of its components."""

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
    """The number t of terms of a Neumann series with step 1/L such that `(1 − μ/L)^t ≤ bias`."""
    shrink = 1 - constants.mu / constants.L
    return max(1, math.ceil(math.log(bias) / math.log(shrink))) if shrink > 0 else 1


def all_methods() -> list[type[AbstractMethod]]:
    """Every concrete method that has been imported."""
    return [m for m in _descendants(AbstractMethod) if not getattr(m, "__abstractmethods__", None)]


def _descendants(cls: type) -> list[type]:
    return [d for child in cls.__subclasses__() for d in (child, *_descendants(child))]


def _shown(value: Any) -> str:
    return shown(value) if hasattr(value, "dtype") else repr(value)
