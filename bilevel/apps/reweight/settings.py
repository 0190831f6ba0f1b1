"""The options of `bilevel reweight`: nothing here imports an array library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.options import Argument, Bounds


@dataclass(frozen=True, kw_only=True)
class Reweight(options.Settings):
    """Learn how much each source of training rows is worth, from a few trusted rows."""

    data: Annotated[Path, Argument()]
    """CSV, TSV or parquet file of training rows."""
    target: str
    """Column to predict."""
    source: str
    """Column that says where a row comes from."""
    validation: Path
    """File of trusted rows, with the same columns; that of the sources may be absent."""
    ignore: tuple[str, ...] = ()
    """Column to leave out; repeatable."""
    test: Annotated[float, Bounds(above=0, most=0.9)] = 0.5
    """Share of the trusted rows kept for the test scores."""
    penalty: Annotated[float, Bounds(above=0)] = 10.0
    """Weight α of the lower problem; the bias is of order 1/α."""
    step_size: Annotated[float, Bounds(above=0)] = 0.01
    """Of AdamW, for model and weights."""
    batch_size: Annotated[int, Bounds(least=1)] = 64
    """Rows of a step, the same number from every source."""
    steps: Annotated[int, Bounds(least=1)] = 3000
    """Steps of ScaleBiO and of DoGE."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides the draws."""
    out: Path = Path("bilevel-reweight.html")
    """Where the report goes."""
    json: bool = False
    """Print the result as JSON."""
