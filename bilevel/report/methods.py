"""The declarations of the method classes, as rows for a terminal, a page or the README."""

import inspect
from collections.abc import Iterator
from typing import NamedTuple

from bilevel.methods import AbstractMethod, Paper, all_methods
from bilevel.problem import Problem

SYMBOLS = {
    "upper_value": "f",
    "upper_grad": "∇f",
    "upper_grad_x": "∇ₓf",
    "upper_grad_y": "∇ᵧf",
    "lower_value": "g",
    "lower_grad": "∇ᵧg",
    "lower_grad_x": "∇ₓg",
    "hvp": "Hv",
    "cross": "Jv",
    "cross_transposed": "Jᵀu",
    "dense_hessian": "H",
    "dense_cross": "J",
}
LEGEND = (
    "Oracle calls with default settings; f upper loss, g lower loss, Hv product with ∂²g/∂y², "
    "Jv product with ∂²g/∂x∂y; H and J the matrices."
)


EXPERIMENTAL = (
    "Experimental: recalled or reconstructed in part, "
    "not checked against the paper in every detail."
)


class MethodRow(NamedTuple):
    """The description of one method, in words."""

    name: str  # of the class
    summary: str  # first sentence of its docstring
    handles: str  # structures of problems
    price: str  # oracle calls a step
    memory: str  # copies of x and y in the state
    rate: str  # samples or gradients to ε; empty where none is claimed
    paper: str  # authors, venue and year
    arxiv: str  # empty where there is none
    citation: str  # the whole reference
    status: str  # "stable" or "experimental"
    about: str  # the rest of its docstring


def method_rows() -> Iterator[MethodRow]:
    """Every method of the package, by name."""
    ours = [m for m in all_methods() if m.__module__.startswith("bilevel.")]
    for method in sorted(ours, key=lambda m: m.__name__.lower()):
        paper = method.reference()
        yield MethodRow(
            name=method.__name__,
            summary=(method.__doc__ or "").strip().split("\n")[0],
            handles=", ".join(sorted(kind.value for kind in method.supports)) or "free variables",
            price=_price(method),
            memory=method.memory,
            rate=method.rate,
            paper=_paper(paper),
            arxiv=paper.arxiv,
            citation=str(paper),
            status=method.status,
            about=_about(method),
        )


def _price(method: type[AbstractMethod]) -> str:
    try:
        calls = method().price(Problem(_nothing, _nothing))
    except TypeError:  # a setting without a default
        return "depends on its settings"
    told = {SYMBOLS[name]: n for name, n in calls._asdict().items() if n}
    return ", ".join(f"{n:g}{symbol}" if n != 1 else symbol for symbol, n in told.items())


def _paper(paper: Paper) -> str:
    first, *others = paper.authors.split(", ")
    names = f"{first} et al." if others else first
    return f"{names}, {paper.venue}"


def _about(method: type[AbstractMethod]) -> str:
    _, _, rest = inspect.cleandoc(method.__doc__ or "").partition("\n")
    return rest.strip()


def _nothing(x, y, batch):
    return 0.0
