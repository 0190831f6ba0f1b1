"""The options of `bilevel tune`: nothing here imports an array library."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.options import Argument, Bounds


class Model(enum.Enum):
    """Linear models, by name."""

    AUTO = "auto"
    RIDGE = "ridge"
    ELASTIC_NET = "elastic-net"
    LOGISTIC = "logistic"
    SOFTMAX = "softmax"


class Per(enum.Enum):
    """What has a penalty of its own."""

    FEATURE = "feature"
    GROUP = "group"
    CLASS = "class"


@dataclass(frozen=True, kw_only=True)
class Tune(options.Settings):
    """Choose one penalty per feature, group or class by cross-validation; write a report."""

    data: Annotated[Path, Argument()]
    """CSV, TSV or parquet file."""
    target: str
    """Column to predict."""
    model: Model = Model.AUTO
    """By default ridge for numbers, logistic for two classes, softmax for more."""
    per: Per = Per.FEATURE
    """What has a penalty of its own."""
    group: tuple[str, ...] = ()
    """Columns that share a penalty, separated by commas, with --per group; repeatable."""
    categorical: tuple[str, ...] = ()
    """Column of labels, which becomes a group of columns of zeros and ones; repeatable."""
    ignore: tuple[str, ...] = ()
    """Column to leave out; repeatable."""
    test: Annotated[float, Bounds(above=0, most=0.9)] = 0.25
    """Share of the rows kept for the test scores, which nothing is chosen by."""
    folds: Annotated[int, Bounds(least=1, most=100)] = 5
    """Folds of the cross-validation; 1 holds out a third of the rows once."""
    spread: Annotated[float, Bounds(above=0)] = 1.0
    """How far log penalties may stand apart before they are drawn to their mean."""
    steps: Annotated[int, Bounds(least=1)] = 50
    """Most upper steps."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides test rows and folds."""
    out: Path = Path("bilevel-tune.html")
    """Where the report goes."""
    json: bool = False
    """Print the result as JSON."""

    def __post_init__(self):
        super().__post_init__()
        if self.group and self.per is not Per.GROUP:
            raise ValueError("--group names columns that share a penalty; give --per group, too.")
