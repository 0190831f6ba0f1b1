"""Where samples come from: arrays, samplers, iterators, and how a compiled loop draws from them.

A `Data` says what there is. `Data.feed` prepares it for a method: arrays are put in a random
order once, and the resulting `Feed`, a pytree, is an argument of the compiled loop. Which batch
step k sees depends on the key and on k alone, so a resumed run sees the same samples.
"""

from bilevel.data.blocks import InBlocks, Picked
from bilevel.data.data import Data, level_keys
from bilevel.data.feeds import Feed, Feeder, Pulled, Random, Repeat, Slices
from bilevel.data.parts import Parts, UnevenBatch, UnevenParts, on_parts
from bilevel.data.sources import Rows, Sampler, Source, Stream, Whole

__all__ = [
    "Data",
    "Feed",
    "Feeder",
    "InBlocks",
    "Parts",
    "Picked",
    "Pulled",
    "Random",
    "Repeat",
    "Rows",
    "Sampler",
    "Slices",
    "Source",
    "Stream",
    "UnevenBatch",
    "UnevenParts",
    "Whole",
    "level_keys",
    "on_parts",
]
