"""Files that users bring: tables, read strictly, and packages that read other formats."""

from bilevel.files.needs import needs
from bilevel.files.table import Categories, Table, listed, read_table
from bilevel.files.target import Target, read_target

__all__ = [
    "Categories",
    "Table",
    "Target",
    "listed",
    "needs",
    "read_table",
    "read_target",
]
