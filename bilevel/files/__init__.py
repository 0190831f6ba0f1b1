"""Files that users bring: tables, arrays, pictures, functions; packages that read other formats."""

from bilevel.files.arrays import check_format, read_arrays, write_arrays
from bilevel.files.functions import load_function, load_named
from bilevel.files.needs import needs
from bilevel.files.pictures import Picture, read_picture, read_pictures, write_picture
from bilevel.files.table import Categories, Table, listed, read_table
from bilevel.files.target import Target, read_target

__all__ = [
    "Categories",
    "Picture",
    "Table",
    "Target",
    "check_format",
    "listed",
    "load_function",
    "load_named",
    "needs",
    "read_arrays",
    "read_picture",
    "read_pictures",
    "read_table",
    "read_target",
    "write_arrays",
    "write_picture",
]
