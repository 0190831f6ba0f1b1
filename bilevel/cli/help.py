"""How help looks: headings and two columns that line up, without boxes."""

from pathlib import Path
from typing import Any

from cyclopts.annotations import resolve_annotated, resolve_optional
from cyclopts.help import HelpEntry, HelpPanel
from rich.console import Console, ConsoleOptions
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bilevel.options import Pair, Strings

NAMES = 20  # width of the first column
VALUES = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", Pair: "INT,INT", Strings: "TEXT"}


class PlainHelp:
    """A formatter for Cyclopts."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        if not panel.entries:
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="cyan", min_width=NAMES, no_wrap=True)
        table.add_column(overflow="fold")
        for entry in panel.entries:
            table.add_row(_names(entry), _about(entry))
        console.print(Text(str(panel.title), style="bold"))
        console.print(Padding(table, (0, 0, 1, 2)))

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        console.print(Text("Usage: ", style="bold") + Text(str(usage).strip()))
        console.print()

    def render_description(
        self, console: Console, options: ConsoleOptions, description: Any
    ) -> None:
        console.print(description)


def _names(entry: HelpEntry) -> str:
    """`--steps INT`."""
    names = " ".join(entry.all_options)
    kind = resolve_optional(resolve_annotated(entry.type))
    value = "NAME" if entry.choices else VALUES.get(kind, "")
    return f"{names} {value}" if names.startswith("-") else names


def _about(entry: HelpEntry) -> Text:
    """The explanation; choices, default, and whether a value is required."""
    told = [f"one of {', '.join(entry.choices)}"] if entry.choices else []
    told += [f"default {entry.default}"] if entry.default is not None else []
    told += ["required"] if entry.required else []
    about = Text(entry.description.primary_renderable.plain.strip())
    return about + Text(f" [{'; '.join(told)}]", style="dim") if told else about
