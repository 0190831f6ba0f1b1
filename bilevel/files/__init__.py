"""Files that users bring: tables, read strictly, and packages that read other formats."""

from bilevel.files.needs import needs
from bilevel.files.table import Categories, Table, read_table

__all__ = ["Categories", "Table", "needs", "read_table"]
