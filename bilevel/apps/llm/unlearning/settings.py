"""The options of `bilevel unlearn`: nothing here imports an array library."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.apps.llm.run.settings import Folders, Tuning
from bilevel.options import Bounds


class Forget(enum.Enum):
    """Losses that fall as answers are forgotten, by name."""

    NPO = "npo"
    ASCENT = "ascent"


class Retain(enum.Enum):
    """Losses that grow as other answers change, by name."""

    LIKELIHOOD = "likelihood"
    DIVERGENCE = "divergence"


class Combine(enum.Enum):
    """What is made of the two losses, by name."""

    BLUR = "blur"
    SUM = "sum"


class Priority(enum.Enum):
    """Which loss comes first, by name."""

    FORGET = "forget"
    RETAIN = "retain"


@dataclass(frozen=True, kw_only=True)
class Files(Folders):
    """Files."""

    forget: Path
    """JSONL or parquet file of demonstrations to forget."""
    retain: Path
    """JSONL or parquet file of demonstrations that are to stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Forgetting(options.Settings):
    """Forgetting."""

    combine: Combine = Combine.BLUR
    """One loss has priority (blur), or a weighted sum of both is minimised."""
    priority: Priority = Priority.FORGET
    """The loss that is minimised first (blur)."""
    forget_loss: Forget = Forget.NPO
    """Negative preference optimization, which ends, or gradient ascent, which never does."""
    retain_loss: Retain = Retain.LIKELIHOOD
    """Likelihood of the answers to retain, or KL divergence from the model given."""
    beta: Annotated[float, Bounds(above=0)] = 0.1
    """Sharpness of npo; the smaller, the more it is like ascent."""
    gamma: Annotated[float, Bounds(least=0)] = 1.0
    """Rate at which the loss of priority falls (blur)."""
    weight: Annotated[float, Bounds(above=0)] = 1.0
    """Weight of the forget loss in the sum, that of the retain loss being 1."""

    def __post_init__(self):
        super().__post_init__()
        blur = self.combine is Combine.BLUR
        readers = {
            ("priority", "gamma"): (blur, "--combine blur"),
            ("weight",): (not blur, "--combine sum"),
            ("beta",): (self.forget_loss is Forget.NPO, "--forget-loss npo"),
        }
        for names, (reads, which) in readers.items():
            for option in options.options(type(self)):
                if (
                    option.name in names
                    and not reads
                    and getattr(self, option.name) != option.default
                ):
                    raise ValueError(
                        f"{option.flag} has no effect here: it is for {which}. Leave it out."
                    )


@dataclass(frozen=True, kw_only=True)
class Unlearn(Files, Forgetting, Tuning):
    """Make a language model forget some answers, and change as few others as possible.

    A step learns from BATCH rows of each file. An interrupted run resumes when you give the same
    command again.
    """
