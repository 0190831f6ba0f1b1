"""The data, beside the problem and the method."""

import jax
import jax.numpy as jnp

from bilevel.data import Data, Feed, InBlocks, Parts, Picked, Random, Rows, Slices, UnevenParts
from bilevel.driver.validate.functions import shape
from bilevel.methods.base import AbstractMethod, Unsupported, all_methods
from bilevel.problem import Problem, Structure


def check_blocks(method: AbstractMethod, problem: Problem, data: Data | Feed) -> None:
    """The data have an entry for each block, and blocks are drawn for methods that ask for it.

    Raises:
        Unsupported: the data draw blocks, and the method takes all of them.
    """
    m = problem.blocks
    for level in ("upper", "lower"):
        source = getattr(data, level)
        if isinstance(source, InBlocks | Picked):
            told = f"Data(blocks={source.drawn})"
            if Structure.BLOCKS not in method.supports:
                able = sorted(k.__name__ for k in all_methods() if Structure.BLOCKS in k.supports)
                raise Unsupported(
                    f"{type(method).__name__} cannot use {told}, as it takes all blocks in every "
                    f"step: leave blocks out. Methods that draw blocks: {', '.join(able)}."
                )
            if m is None:
                raise ValueError(
                    f"{told} draws blocks, but the problem declares none. Say how many there are: "
                    "Problem(upper, lower, blocks=m)."
                )
        elif m is not None and isinstance(source, Rows | Slices | Random | Parts | UnevenParts):
            raise ValueError(
                f"Data.batch_size takes rows of the leading axis, which are the {m} blocks of the "
                "problem: leave it out, or draw blocks with Data(..., blocks=...)."
            )
        arrays = getattr(source, "arrays", None)
        found = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(arrays)}
        if m is not None and found - {(m,)}:
            raise ValueError(
                f"Data.{level} = {shape(arrays)}, and the problem declares blocks={m}: every "
                f"leaf needs a leading axis of {m}, one entry a block."
            )
