"""Reports: one self-contained HTML page of figures, tables and text.

    report.write("run.html", "My run", report.of({"SOBA": result}))

`of` turns results into sections; more sections are a list away:
`[report.Section("Data", [report.Text("..."), report.Table(columns, rows)]), *report.of(results)]`.
"""

from bilevel.report.blocks import Block, Figure, Numbers, Section, Table, Text
from bilevel.report.clock import Clock, clock
from bilevel.report.comparison import of
from bilevel.report.environment import environment
from bilevel.report.figures import curves, series_color, svg
from bilevel.report.methods import EXPERIMENTAL, LEGEND, MethodRow, method_rows
from bilevel.report.page import check_writable, render, try_write, write
from bilevel.report.score import Score, mean_and_error, verdict
from bilevel.report.tensorboard import TensorBoard

__all__ = [
    "EXPERIMENTAL",
    "LEGEND",
    "Block",
    "Clock",
    "Figure",
    "MethodRow",
    "Numbers",
    "Score",
    "Section",
    "Table",
    "TensorBoard",
    "Text",
    "check_writable",
    "clock",
    "curves",
    "environment",
    "mean_and_error",
    "method_rows",
    "of",
    "render",
    "series_color",
    "svg",
    "try_write",
    "verdict",
    "write",
]
