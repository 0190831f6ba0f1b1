"""Files that users bring: tables, arrays and functions, and packages that read other formats."""

from bilevel.files.arrays import check_format, read_arrays, write_arrays
from bilevel.files.functions import load_function
from bilevel.files.needs import needs
from bilevel.files.table import Categories, Table, read_table

__all__ = [
    "Categories",
    "Table",
    "check_format",
    "load_function",
    "needs",
    "read_arrays",
    "read_table",
    "write_arrays",
]
