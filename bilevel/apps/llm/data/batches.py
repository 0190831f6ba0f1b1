"""Rows of token ids to arrays, padded or packed, and the order they are visited in."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from bilevel.apps.llm.data.encode import Row, RowPair
from bilevel.apps.llm.hub.tokenizer import pad


class Packed(NamedTuple):
    """Sequences in rows of equal length; what `decoder` reads."""

    tokens: np.ndarray  # int32 (batch, time)
    segments: np.ndarray  # int32 (batch, time): 0 at padding, else the number of the sequence
    response: np.ndarray  # bool (batch, time): what is to be learned


class Arrays(NamedTuple):
    """Prompts padded on the left and responses padded on the right; one row for each pair."""

    prompts: np.ndarray  # int32 (n, longest prompt)
    prompt_mask: np.ndarray  # bool, of the prompts
    responses: np.ndarray  # int32 (n, longest response)
    response_mask: np.ndarray  # bool, of the responses


def padded(
    rows: Sequence[Row], *, pad_id: int | None = 0, prompt: int | None = None,
    response: int | None = None
) -> Arrays:  # fmt: skip
    """Rows as arrays.

    Args:
        prompt, response: lengths; those of the longest when absent.
    """
    left = pad([row.prompt for row in rows], pad=pad_id, left=True, length=prompt)
    right = pad([row.response for row in rows], pad=pad_id, length=response)
    return Arrays(*left, *right)


def packed(rows: Sequence[Row], length: int) -> Packed:
    """Sequences side by side in rows of `length`, so that little is padding.

    Each goes into the first row with room for it. Sequences do not see each other.

    Raises:
        ValueError: a sequence is longer than `length`.
    """
    bins: list[list[Row]] = []
    room: list[int] = []
    for row in rows:
        n = _length(row)
        if n > length:
            raise ValueError(f"a sequence has {n} tokens, which do not fit into rows of {length}.")
        place = next((j for j, left in enumerate(room) if left >= n), None)
        if place is None:
            bins, room, place = [*bins, []], [*room, length], len(bins)
        bins[place].append(row)
        room[place] -= n
    found = Packed(
        np.zeros((len(bins), length), np.int32),
        np.zeros((len(bins), length), np.int32),
        np.zeros((len(bins), length), bool),
    )
    for i, together in enumerate(bins):
        at = 0
        for number, row in enumerate(together, 1):
            end = at + _length(row)
            found.tokens[i, at:end] = row.prompt + row.response
            found.segments[i, at:end] = number
            found.response[i, at + len(row.prompt) : end] = True
            at = end
    return found


def _length(row: Row) -> int:
    return len(row.prompt) + len(row.response)


T = TypeVar("T", Row, RowPair)


def _source_of(row: Row | RowPair) -> str | None:
    return row.source if isinstance(row, Row) else row.chosen.source


def stratified(rows: Sequence[T], seed: int) -> list[T]:
    """A random order in which every stretch holds each source in proportion.

    The i-th of a source's n rows, shuffled, stands near the share (i + u)/n of the whole.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str | None, list[T]] = {}
    for row in rows:
        groups.setdefault(_source_of(row), []).append(row)
    placed = []
    for group in groups.values():
        shift = rng.random()
        for i, j in enumerate(rng.permutation(len(group))):
            placed.append(((i + shift) / len(group), len(placed), group[j]))
    return [row for _, _, row in sorted(placed, key=lambda one: one[:2])]


def split(rows: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Most of the rows, and a share of every source to judge by; no row is in both."""
    order = stratified(rows, seed)
    n = held_out(len(order), share)
    return order[n:], order[:n]


def held_out(rows: int, share: float) -> int:
    """How many rows `split` holds out."""
    return round(share * rows)


class Batches:
    """Batches of `size` rows of tokens, epoch after epoch; every iteration starts anew.

    Each epoch is a new order, and what does not fill its last batch is left out.

    Args:
        length: pack sequences into rows of this length; each in a row of its own when absent.
        seed: decides the order; the same seed gives the same batches.
        epochs: stop after so many; never when absent.

    Raises:
        ValueError: fewer rows than a batch has.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        size: int,
        *,
        length: int | None = None,
        seed: int = 0,
        epochs: int | None = None,
    ):
        self._rows, self._size, self._seed, self._epochs = rows, size, seed, epochs
        self._length = length
        available = len(self._epoch(0)[0])
        if not 1 <= size <= available:
            raise ValueError(f"a batch of {size} rows cannot be made from {available}.")

    def __iter__(self) -> Iterator[Arrays | Packed]:
        epoch = 0
        while self._epochs is None or epoch < self._epochs:
            whole = self._epoch(epoch)
            for at in range(0, len(whole[0]) - self._size + 1, self._size):
                yield type(whole)(*(leaf[at : at + self._size] for leaf in whole))
            epoch += 1

    def _epoch(self, number: int) -> Arrays | Packed:
        order = stratified(self._rows, self._seed + number)
        return padded(order) if self._length is None else packed(order, self._length)
