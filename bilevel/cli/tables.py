"""Tables for the terminal."""

from rich import box
from rich.table import Table

from bilevel.report import EXPERIMENTAL, LEGEND, method_rows


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
    """Every method, by name, generated from the classes."""
    table = new_table("Methods", caption=f"{LEGEND} * {EXPERIMENTAL}")
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("handles")
    table.add_column("oracle calls a step")
    table.add_column("memory", no_wrap=True)
    table.add_column("paper")
    for row in method_rows():
        paper = f"{row.paper}, arXiv:{row.arxiv}" if row.arxiv else row.paper
        name = row.name if row.status == "stable" else f"{row.name}*"
        table.add_row(name, row.handles, row.price, row.memory, paper)
    return table
