"""The options of `bilevel mix`: nothing here imports an array library."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.apps.llm.run.settings import Folders, Tuning
from bilevel.options import Bounds, Several


class Method(enum.Enum):
    """Ways to weigh sources, by name."""

    SCALEBIO = "scalebio"
    DOGE = "doge"
    UNIFORM = "uniform"
    TARGET = "target"


class Weigh(enum.Enum):
    """What has a weight, by name."""

    SOURCE = "source"
    ROW = "row"


@dataclass(frozen=True, kw_only=True)
class Files(Folders):
    """Files."""

    sources: Annotated[tuple[str, ...], Several()]
    """JSONL or parquet files of demonstrations, a source each; at least two, or one with --weigh
    row."""
    target: Path
    """JSONL or parquet file of demonstrations like those that the model is to be good at."""


@dataclass(frozen=True, kw_only=True)
class Mixing(options.Settings):
    """Weights."""

    method: Method = Method.SCALEBIO
    """How sources are weighed; uniform weighs all alike, target trains on the target alone."""
    weigh: Weigh = Weigh.SOURCE
    """What has a weight: each source as a whole, or each of its rows (scalebio)."""
    penalty: Annotated[float, Bounds(above=0)] = 10.0
    """Weight of the sources against the target; the error of the weights' slope is of order
    1/penalty (scalebio)."""
    weight_rate: Annotated[float, Bounds(least=0)] = 0.05
    """Step size of the weights: of Adam (scalebio), or of the score (doge)."""
    weight_steps: Annotated[int | None, Bounds(least=1)] = None
    """Steps in which the weights are learned; as many as steps when absent (scalebio, doge)."""
    target_batch: Annotated[int | None, Bounds(least=1)] = None
    """Rows of the target in such a step; BATCH when absent (scalebio, doge)."""
    blocks: Annotated[int | None, Bounds(least=1)] = None
    """Layers that move at a time, redrawn every 20 steps (LISA), with --rank 0; all when absent."""


@dataclass(frozen=True, kw_only=True)
class Mix(Files, Mixing, Tuning):
    """Learn which sources of data help with a target, and train a language model on the mixture.

    First the weights are learned, then the model given is trained for STEPS on BATCH rows a step,
    drawn with them. A step of the weights takes BATCH rows of the sources together, as many of each
    (at least one); with --weigh row it takes them as they come. An interrupted run resumes when you
    give the same command again.
    """

    def __post_init__(self):
        super().__post_init__()
        if len(self.sources) < 2 and self.weigh is Weigh.SOURCE:
            raise ValueError(
                "one source needs no weight; give at least two --sources, or weights to its rows "
                "by --weigh row."
            )
        twice = [name for i, name in enumerate(self.sources) if name in self.sources[:i]]
        if twice:
            raise ValueError(f"{twice[0]} is given twice as a source; leave one of them out.")
        if self.weight_steps is not None and self.warmup >= self.weight_steps:
            raise ValueError(
                f"warmup is {self.warmup}, and the weights have {self.weight_steps} steps; fewer "
                "are needed."
            )
        readers = {
            ("penalty", "weigh"): (self.method is Method.SCALEBIO, "--method scalebio"),
            ("weight_rate", "weight_steps", "target_batch"): (
                self.learns,
                "--method scalebio and doge",
            ),
            ("blocks",): (self.rank == 0, "--rank 0"),
        }
        for names, (reads, which) in readers.items():
            for option in options.options(type(self)):
                given = getattr(self, option.name) != option.default
                if option.name in names and given and not reads:
                    raise ValueError(
                        f"{option.flag} has no effect here: it is for {which}. Leave it out."
                    )

    @property
    def learns(self) -> bool:
        """Whether weights are learned."""
        return self.method in (Method.SCALEBIO, Method.DOGE)
