"""Files that users bring: tables, arrays, pictures, functions; packages that read other formats."""

from bilevel.files.arrays import check_format, read_arrays, write_arrays
from bilevel.files.functions import load_function
from bilevel.files.needs import needs
from bilevel.files.pictures import Picture, read_picture, read_pictures, write_picture
from bilevel.files.table import Categories, Table, read_table

__all__ = [
    "Categories",
    "Picture",
    "Table",
    "check_format",
    "load_function",
    "needs",
    "read_arrays",
    "read_picture",
    "read_pictures",
    "read_table",
    "write_arrays",
    "write_picture",
]
