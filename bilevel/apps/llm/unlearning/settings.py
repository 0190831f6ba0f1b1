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
    RMU = "rmu"


class Retain(enum.Enum):
    """Losses that grow as other answers change, by name."""

    LIKELIHOOD = "likelihood"
    DIVERGENCE = "divergence"
    STATES = "states"


class Combine(enum.Enum):
    """What is made of the two losses, by name."""

    BLUR = "blur"
    SUM = "sum"
    ALONE = "alone"


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
class Judging(options.Settings):
    """Report."""

    retrained: Path | None = None
    """Model that was trained without the answers to forget. With it the report tells the forget
    quality: whether the two can be told apart."""
    unseen: Path | None = None
    """JSONL or parquet file of answers like those to forget that no model has seen. With it and a
    retrained model the report tells the privacy leakage."""
    general: tuple[str, ...] = ()
    """Further files of demonstrations that the model should still know, such as facts of the world;
    they count in the model utility. Repeatable."""

    def __post_init__(self):
        super().__post_init__()
        if self.unseen is not None and self.retrained is None:
            raise ValueError(
                "--unseen has no effect here: it is for --retrained MODEL. Give that, too, or "
                "leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class Forgetting(options.Settings):
    """Forgetting."""

    combine: Combine = Combine.BLUR
    """One loss has priority (blur), a weighted sum of both is minimised (sum), or the forget loss
    alone."""
    priority: Priority = Priority.FORGET
    """The loss that is minimised first (blur)."""
    forget_loss: Forget = Forget.NPO
    """Negative preference optimization (npo) and states steered to a random vector (rmu), which
    end, or gradient ascent, which never does."""
    retain_loss: Retain = Retain.LIKELIHOOD
    """Likelihood of the answers to retain, KL divergence from the model given, or squared
    difference of the states from those of the model given, which goes with rmu."""
    beta: Annotated[float, Bounds(above=0)] = 0.1
    """Sharpness of npo; the smaller, the more it is like ascent."""
    steered_layer: Annotated[int | None, Bounds(least=1)] = None
    """Layer, counted from 1, whose output is steered (rmu) or held (states); a quarter of the way
    up when absent. Layers above it do not change."""
    steering: Annotated[float, Bounds(above=0)] = 6.5
    """Length of the vector that states are steered to (rmu)."""
    gamma: Annotated[float, Bounds(least=0)] = 1.0
    """Rate at which the loss of priority falls (blur)."""
    weight: Annotated[float, Bounds(above=0)] = 1.0
    """Weight of the forget loss in the sum, that of the retain loss being 1."""

    def __post_init__(self):
        super().__post_init__()
        blur, alone = self.combine is Combine.BLUR, self.combine is Combine.ALONE
        rmu, states = self.forget_loss is Forget.RMU, self.retain_loss is Retain.STATES
        readers = {
            ("priority", "gamma"): (blur, "--combine blur"),
            ("weight",): (self.combine is Combine.SUM, "--combine sum"),
            ("retain_loss",): (not alone, "--combine blur and sum"),
            ("beta",): (self.forget_loss is Forget.NPO, "--forget-loss npo"),
            ("steering",): (rmu, "--forget-loss rmu"),
            ("steered_layer",): (rmu or states, "--forget-loss rmu and --retain-loss states"),
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
class Unlearn(Files, Forgetting, Tuning, Judging):
    """Make a language model forget some answers, and change as few others as possible.

    A step learns from BATCH rows of each file. An interrupted run resumes when you give the same
    command again.
    """
