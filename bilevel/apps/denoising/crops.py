"""Pairs of crops, clean and noisy, to learn from and to judge by."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bilevel.apps.denoising.problem import Pictures
from bilevel.apps.denoising.settings import Denoise
from bilevel.files import Picture, read_pictures


class Pairs(NamedTuple):
    """Pictures and their noisy versions."""

    clean: Pictures
    noisy: Pictures


class Task(NamedTuple):
    """No pixel of the pictures is in both."""

    train: Pairs
    held_out: Pairs


def read(options: Denoise) -> Task:
    """Draw the crops that the options ask for.

    Raises:
        ValueError, OSError, ImportError: in one sentence: a file cannot be read, a picture is too
            small or has no partner, or there are too few crops.
    """
    draw = np.random.default_rng(options.seed)
    clean = read_pictures(options.folder)
    noisy = None if options.noisy is None else _partners(clean, options.noisy)
    tiles = _tiles(clean, options.crop)
    count = options.crops + options.held_out
    if len(tiles) < count:
        raise ValueError(
            f"{options.folder} holds {len(tiles)} crops of {options.crop} pixels that do not "
            f"overlap; {options.crops} to learn from and {options.held_out} to judge by are "
            "wanted. Lower --crop, --crops or --held-out, or add pictures."
        )
    chosen = draw.permutation(len(tiles))[:count]
    right = tiles[chosen]
    if noisy is None:
        wrong = right + options.noise * draw.normal(size=right.shape)
    else:
        wrong = _tiles(noisy, options.crop)[chosen]
    pairs = Pairs(jnp.asarray(right), jnp.asarray(wrong))
    n = options.crops
    return Task(Pairs(*(a[:n] for a in pairs)), Pairs(*(a[n:] for a in pairs)))


def _tiles(pictures: Sequence[Picture], side: int) -> Float[np.ndarray, "n side side"]:
    """All squares of a grid on every picture."""
    found = []
    for picture in pictures:
        gray = picture.gray
        down, right = (length // side for length in gray.shape)
        if not down * right:
            height, width = gray.shape
            raise ValueError(
                f"{picture.file} has {width} x {height} pixels; crops of {side} do not fit. "
                "Lower --crop or take the picture away."
            )
        grid = gray[: down * side, : right * side].reshape(down, side, right, side)
        found.append(grid.swapaxes(1, 2).reshape(-1, side, side))
    return np.concatenate(found)


def _partners(clean: Sequence[Picture], folder: Path) -> list[Picture]:
    """The picture of the same name for each."""
    noisy = {picture.file.name: picture for picture in read_pictures(folder)}
    for picture in clean:
        name = picture.file.name
        if name not in noisy:
            raise ValueError(f"{folder} has no {name}; a noisy version of each picture is needed.")
        if noisy[name].gray.shape != picture.gray.shape:
            sizes = (" x ".join(map(str, p.gray.shape[::-1])) for p in (noisy[name], picture))
            other, own = sizes
            raise ValueError(f"{noisy[name].file} has {other} pixels; {own} are needed.")
    return [noisy[picture.file.name] for picture in clean]
