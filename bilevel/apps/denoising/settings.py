"""Options of `bilevel denoise`."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.options import Argument, Bounds


class Choice(enum.Enum):
    """Which regularizer."""

    BOTH = "both"
    TOTAL_VARIATION = "total-variation"
    FIELDS_OF_EXPERTS = "fields-of-experts"


@dataclass(frozen=True, kw_only=True)
class Denoise(options.Settings):
    """Learn to denoise pictures of one kind from clean ones, and write a report."""

    folder: Annotated[Path, Argument()]
    """Folder of clean pictures: PNG, JPEG, TIFF, BMP, WebP or PPM."""
    noisy: Path | None = None
    """Folder with a noisy version of each, of the same name; absent, noise is added."""
    noise: Annotated[float, Bounds(above=0, most=1)] = 0.1
    """Standard deviation of that noise; black is 0 and white 1."""
    regularizer: Choice = Choice.BOTH
    """What is learned: the weight of total variation, filters, or each in turn."""
    filter: Annotated[int, Bounds(least=2, most=7)] = 3
    """Side of the filters, in pixels."""
    crop: Annotated[int, Bounds(least=8, most=256)] = 32
    """Side of the square crops, in pixels."""
    crops: Annotated[int, Bounds(least=1, most=1024)] = 16
    """Crops to learn from."""
    held_out: Annotated[int, Bounds(least=1, most=1024)] = 32
    """Other crops, to judge by."""
    steps: Annotated[int, Bounds(least=1)] = 20
    """Steps of MAID."""
    apply: Path | None = None
    """Folder of noisy pictures to denoise with what was learned."""
    into: Path = Path("denoised")
    """Folder for these; it is made."""
    out: Path = Path("bilevel-denoise.html")
    """Where the report goes."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides crops and noise."""
