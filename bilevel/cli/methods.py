"""`bilevel methods`: a table of all, or the page of one."""

import inspect
import re
from collections.abc import Mapping

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bilevel.cli import typed
from bilevel.cli.console import plain_console
from bilevel.cli.options import Methods
from bilevel.cli.tables import new_table, write_json
from bilevel.errors import Refused
from bilevel.methods import AbstractMethod, all_methods, references
from bilevel.report import EXPERIMENTAL, LEGEND, MethodRow, method_rows


def run(options: Methods) -> None:
    """Show what is asked for.

    Raises:
        ValueError: there is no such method.
    """
    console = plain_console()
    rows = {row.name: row for row in method_rows()}
    classes = {method.__name__: method for method in all_methods()}
    chosen = list(rows) if options.name is None else [typed.method_class(options.name).__name__]
    if options.for_ is not None:
        problem = typed.load(options.for_).problem
        lacking = {name: classes[name].unsupported(problem) for name in chosen}
        chosen = [name for name in chosen if not lacking[name]]
        if not chosen:
            reason = f": {' and '.join(lacking[options.name])}" if options.name in lacking else ""
            raise Refused(f"no such method handles {options.for_}{reason}.")
    if options.json:
        write_json([rows[name]._asdict() for name in chosen])
    elif options.bibtex:
        keys = dict.fromkeys(classes[name].paper for name in chosen)
        console.out("\n\n".join(map(references.bibtex, keys)))
    elif options.name is None:
        console.print(table([rows[name] for name in chosen]))
    else:
        console.print(page(classes[chosen[0]], rows[chosen[0]]))


def table(rows: list[MethodRow]) -> Table:
    """Every method, by name, generated from the classes; fits 80 columns."""
    table = new_table(
        "Methods", caption=f"{LEGEND} * {EXPERIMENTAL} `bilevel methods NAME` shows one in full."
    )
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("oracle calls a step", max_width=22)
    table.add_column("paper", overflow="fold")
    for row in rows:
        paper = f"{row.paper}, arXiv:{row.arxiv}" if row.arxiv else row.paper
        name = row.name if row.status == "stable" else f"{row.name}*"
        table.add_row(name, row.price, paper)
    return table


def page(method: type[AbstractMethod], row: MethodRow) -> Group:
    """Signature, assumptions, price and paper of one."""
    facts = {
        "handles": row.handles,
        "lower loss": method.below.value,
        "mini-batches": "yes" if method.samples else "no",
        "a step": f"{row.price} (oracle calls)",
        "memory": row.memory,
        "rate": row.rate,
        "status": EXPERIMENTAL if row.status != "stable" else "",
        "paper": row.citation,
    }
    about, settings = _parts(row.about)
    blocks = [
        Text(row.name, style="bold") + Text(f"\n{row.summary}", style="not bold"),
        Padding(Text(signature(method)), (1, 0, 1, 4)),
        _pairs({name: fact for name, fact in facts.items() if fact}),
        Text(f"\n{about}"),
        *([Text("\nSettings", style="bold"), _pairs(settings)] if settings else []),
        Text(f"\n{LEGEND}", style="dim"),
    ]
    return Group(*blocks)


def _pairs(facts: Mapping[str, str]) -> Padding:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", max_width=24)
    grid.add_column()
    for name, fact in facts.items():
        grid.add_row(name, Text(fact))
    return Padding(grid, (0, 0, 0, 2))


def _parts(docstring: str) -> tuple[str, dict[str, str]]:
    """Its paragraphs, a line each, and what it says of the settings."""
    text, _, attributes = f"\n{docstring}".partition("\nAttributes:\n")
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", attributes, flags=re.MULTILINE)
    joined = re.sub(r"(?<=\S)\n(?=\S)", " ", text.strip())
    return joined, {name: " ".join(about.split()) for name, about in entries}


def signature(method: type[AbstractMethod]) -> str:
    """How it is made, with its defaults."""
    try:
        return f"bl.methods.{method()!r}"
    except TypeError:  # a setting without a default
        parameters = inspect.signature(method).parameters.values()
        plain = [one.replace(annotation=inspect.Parameter.empty) for one in parameters]
        return f"bl.methods.{method.__name__}({', '.join(map(str, plain))})"
