"""Tables for the terminal, generated from the classes."""

from rich import box
from rich.table import Table

from bilevel.methods import AbstractMethod, all_methods
from bilevel.oracles import Price
from bilevel.problem import Problem

WORDS = {
    "upper_grad": "∇f",
    "upper_grad_x": "∇ₓf",
    "upper_grad_y": "∇ᵧf",
    "lower_grad": "∇ᵧg",
    "lower_grad_x": "∇ₓg",
    "hvp": "Hv",
    "cross": "Jv",
}


def new_table(title: str, **options) -> Table:
    """The look that all our tables share."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        **options,
    )


def methods() -> Table:
    """Every method, by name."""
    table = new_table(
        "Methods",
        caption="Oracle calls with default settings; f upper loss, g lower loss, Hv product with "
        "∂²g/∂y², Jv product with ∂²g/∂x∂y.",
    )
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("handles")
    table.add_column("oracle calls a step")
    table.add_column("memory", no_wrap=True)
    table.add_column("paper")
    for method in sorted(all_methods(), key=lambda m: m.__name__.lower()):
        handled = ", ".join(sorted(kind.value for kind in method.handles)) or "free variables"
        table.add_row(method.__name__, handled, price(method), method.memory, paper(method))
    return table


def price(method: type[AbstractMethod]) -> str:
    """The oracle calls of a step with default settings, in symbols."""
    try:
        calls: Price = method().price(Problem(_nothing, _nothing))
    except TypeError:  # a setting without a default
        return "depends on its settings"
    told = [
        f"{n:g}{WORDS.get(name, name)}" if n != 1 else WORDS.get(name, name)
        for name, n in calls._asdict().items()
        if n
    ]
    return ", ".join(told) or "none"


def paper(method: type[AbstractMethod]) -> str:
    """First author, venue, number."""
    first, *others = method.paper.authors.split(", ")
    names = f"{first} et al." if others else first
    return f"{names}, {method.paper.venue}, arXiv:{method.paper.arxiv}"


def _nothing(x, y, batch):
    return 0.0
