"""The blocks of a page: text, tables, figures, numbers, and sections."""

import abc
import dataclasses
import html
from collections.abc import Sequence
from typing import Any

from bilevel.report.numbers import shown


class Block(abc.ABC):
    """A block of a page."""

    @abc.abstractmethod
    def html(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Text(Block):
    """A paragraph."""

    text: str

    def html(self) -> str:
        return f"<p>{html.escape(self.text)}</p>"


@dataclasses.dataclass(frozen=True)
class Numbers(Block):
    """A row of large numbers, each with a line under it."""

    pairs: Sequence[tuple[str, str]]  # (number, what it is)

    def html(self) -> str:
        cards = (
            f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(number)}</dd></div>"
            for number, label in self.pairs
        )
        return f'<dl class="numbers">{"".join(cards)}</dl>'


LONG = 32  # letters of a first cell that still stands on one line


@dataclasses.dataclass(frozen=True)
class Table(Block):
    """Rows under headings. Numbers are right-aligned, NaN is a dash, `None` an empty cell.

    Attributes:
        formats: format of a column by its name, such as ".3f", or `",.0f"` for integers.
        colors: colour of the chip in front of a first cell, by the text of the cell.
        code: columns in a monospace font.
        aside: first cells of reference rows, which are shown in a lighter style.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    formats: dict[str, str] = dataclasses.field(default_factory=dict)
    colors: dict[str, str] = dataclasses.field(default_factory=dict)
    code: Sequence[str] = ()
    aside: Sequence[str] = ()

    def html(self) -> str:
        numeric = [self._is_numeric(i) for i in range(len(self.columns))]
        heads = "".join(
            f'<th scope="col"{" class=number" * right}>{html.escape(name)}</th>'
            for name, right in zip(self.columns, numeric, strict=True)
        )
        rows = "".join(self._row(row, numeric) for row in self.rows)
        return (
            '<div class="wide"><table>'
            f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        )

    def _is_numeric(self, i: int) -> bool:
        values = [row[i] for row in self.rows if row[i] is not None]
        return bool(values) and all(isinstance(value, int | float) for value in values)

    def _row(self, row: Sequence[Any], numeric: list[bool]) -> str:
        first = str(row[0])
        color = self.colors.get(first)
        chip = f'<span class="chip" style="background:{color}"></span>' if color else ""
        long = ' class="long"' if len(first) > LONG else ""
        cells = [f'<th scope="row"{long}>{chip}{html.escape(first)}</th>']
        for name, value, right in list(zip(self.columns, row, numeric, strict=True))[1:]:
            text = html.escape(shown(value, self.formats.get(name, "")))
            text = f"<code>{text}</code>" if name in self.code else text
            cells.append(f"<td{' class=number' * right}>{text}</td>")
        quiet = ' class="aside"' if first in self.aside else ""
        return f"<tr{quiet}>{''.join(cells)}</tr>"


PAGE = 60  # width of a page, in rem


@dataclasses.dataclass(frozen=True)
class Figure(Block):
    """A `matplotlib.figure.Figure`, embedded as SVG, with a caption.

    On a narrow page its legend and its panels stand below each other.
    """

    figure: Any
    caption: str = ""

    def html(self) -> str:
        from bilevel.report import figures

        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        label = html.escape(self.caption or "figure", quote=True)
        whole, parts = figures.svg(self.figure), figures.parts(self.figure)
        width = PAGE / 9.6 * self.figure.get_figwidth()
        whole = whole.replace("<svg", f'<svg class="whole" style="--width:{width:.3g}rem"', 1)
        own = whole.split('id="')[1].split('"')[0]  # of the outermost group
        cut = "".join(
            f'<svg viewBox="{" ".join(f"{number:.1f}" for number in box)}" '
            f'style="--width:{PAGE / 9.6 / 72 * box[2]:.3g}rem"><use href="#{own}"/></svg>'
            for box in parts
        )
        stack = f'<div class="stack">{cut}</div>' if len(parts) > 1 else ""
        return f'<figure role="img" aria-label="{label}">{whole}{stack}{caption}</figure>'


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, its `title`, and the blocks below it."""

    title: str
    blocks: Sequence[Block]

    def html(self) -> str:
        inside = "\n".join(block.html() for block in self.blocks)
        return f"<section><h2>{html.escape(self.title)}</h2>\n{inside}</section>"
