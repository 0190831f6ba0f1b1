"""`bilevel dag data.csv`: read, search, tell the edges."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.console import Console

from bilevel import report
from bilevel.apps.dag import figures, graphs
from bilevel.apps.dag.notears import notears
from bilevel.apps.dag.score import Covariance, covariance
from bilevel.apps.dag.settings import Dag
from bilevel.apps.dag.topo import Found, restarts
from bilevel.files import Table, read_table

MOST_COLUMNS = 300
EXACT = 1e-9  # share of its variance below which a column is a combination of others


def run(options: Dag) -> None:
    """The command.

    Raises:
        ValueError, OSError, ImportError: in one sentence, before anything runs.
    """
    out, console = report.check_writable(options.out), Console(soft_wrap=True, highlight=False)
    edges_file = options.edges and report.check_writable(options.edges, "the graph")
    table = read_table(options.data)
    names = options.columns or table.names
    C = read(table, names)
    found = restarts(C, options.restarts, options.seed)
    W = graphs.cut(found.W, options.threshold)
    edges = edges_of(W, names)
    for first, second, weight in edges:
        console.print(f"{first} → {second}  {weight:+.3f}", markup=False)
    console.print(f"{len(edges)} edges; score {found.score:.6g}.")
    other = graphs.cut(notears(C), options.threshold) if options.notears else None
    if other is not None:
        console.print(f"NOTEARS: {np.count_nonzero(other)} edges; {_compared(W, other)}")
    if edges_file:
        save(edges, edges_file)
        console.print(f"Edges written to {edges_file}")
    lead = f"{len(table)} rows and {len(names)} columns of {options.data}."
    title = "A directed acyclic graph by topological swaps"
    report.write(out, title, sections(found, W, names, options.threshold, other), lead)
    console.print(f"Report written to {out}")


def read(table: Table, names: Sequence[str]) -> Covariance:
    """The covariance of columns, refused where regressions on others would be undetermined.

    Raises:
        ValueError: a field is no number; a column is constant, or a combination of others; there
            are too few rows or columns, or too many columns.
    """
    for name in names:
        table.column(name)
    if not 2 <= len(names) <= MOST_COLUMNS:
        raise ValueError(f"{len(names)} columns; from 2 to {MOST_COLUMNS} are needed.")
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise ValueError(f"column {repeated!r} is named twice; name it once.")
    data = table.numbers(names)
    if len(data) < 2 * len(names):
        raise ValueError(
            f"{table.file} has {len(data)} rows; at least {2 * len(names)} are needed for "
            f"{len(names)} columns. Take fewer columns with --columns."
        )
    size = np.abs(data).max()
    if size > 1e100:
        raise ValueError(f"{table.file} holds a number of size {size:.3g}; at most 1e100 is read.")
    C = covariance(data)
    for j, name in enumerate(names):
        if C[j, j] <= EXACT**2 * max(1e-300, np.square(data[:, j]).max()):
            raise ValueError(f"{table.file}: column {name!r} is constant; leave it out.")
        # What is left of it after those before it, all in units of their own.
        scale = np.sqrt(np.diagonal(C)[: j + 1])
        R = C[: j + 1, : j + 1] / np.outer(scale, scale)
        coefficients = np.linalg.lstsq(R[:j, :j], R[:j, j], rcond=None)[0]
        if 1 - R[j, :j] @ coefficients < EXACT:
            raise ValueError(
                f"{table.file}: column {name!r} is a linear combination of columns before it; "
                "leave one of them out."
            )
    return C


def edges_of(W: Float[np.ndarray, "d d"], names: Sequence[str]) -> list[tuple[str, str, float]]:
    """From, to and weight, the largest weights first."""
    there = [(names[i], names[j], float(W[i, j])) for i, j in np.argwhere(W != 0).tolist()]
    return sorted(there, key=lambda edge: -abs(edge[2]))


def save(edges: Sequence[tuple[str, str, float]], file: Path) -> None:
    """As CSV."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([("from", "to", "weight"), *edges])


def _compared(W: np.ndarray, other: np.ndarray) -> str:
    return f"{graphs.distance(W, other)} changes lead from one graph to the other."


def sections(
    found: Found, W: np.ndarray, names: Sequence[str], threshold: float, other: np.ndarray | None
) -> list[report.Section]:
    """The report."""
    edges = edges_of(W, names)
    numbers = [(str(len(edges)), "edges"), (f"{found.score:.4g}", "score")]
    blocks: list[report.Block] = [report.Numbers(numbers)]
    blocks.append(
        report.Text(
            "The score is half of the variance that is left, summed over the columns, when each is "
            "explained by those before it; no swap of two columns that was tried lowers it. An "
            f"edge is a weight of at least {threshold:g}. Edges tell causes only if noise of equal "
            "variance is a fair model of these columns in these units, and nothing that drives "
            "several of them is missing."
        )
    )
    caption = "Blue: positive weights; dashed: negative ones. Wider lines: larger weights."
    blocks.append(report.Figure(figures.graph(W, names), caption))
    columns = ("from", "to", "weight")
    order = ", ".join(names[int(i)] for i in found.order)
    found_sections = [
        report.Section("In short", blocks),
        report.Section("Edges", [report.Table(columns, edges, {"weight": "+.3f"})]),
        report.Section("Order", [report.Text(order)]),
    ]
    if other is not None:
        rows = edges_of(other, names)
        blocks = [report.Text(_compared(W, other)), report.Table(columns, rows, {"weight": "+.3f"})]
        found_sections.append(report.Section("NOTEARS", blocks))
    return found_sections
