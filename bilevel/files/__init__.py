"""Files that users bring: tables, read strictly, pictures, and packages that read other formats."""

from bilevel.files.needs import needs
from bilevel.files.pictures import Picture, read_picture, read_pictures, write_picture
from bilevel.files.table import Categories, Table, read_table

__all__ = [
    "Categories",
    "Picture",
    "Table",
    "needs",
    "read_picture",
    "read_pictures",
    "read_table",
    "write_picture",
]
