"""Counts in the header of a GGUF file, held against its size before anything is read by them."""

import mmap
import struct
from pathlib import Path

STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes, by type
MOST = 2**22  # entries of all arrays: tokens, merges, scores
DEEPEST = 4  # arrays of arrays


def check_header(file: Path) -> None:
    """Walk over the metadata, as the file itself tells their lengths.

    A reader that believes a count of 2^60 loops for ever: entries past the end are empty, and no
    error.

    Raises:
        ValueError: a length that the file does not hold, or arrays of more than four million
            entries in all.
    """
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        _Walk(data).metadata()


class _Walk:
    def __init__(self, data: mmap.mmap):
        self._data, self._at, self._entries = data, 4, 0
        self._order = ">" if data[4:6] == b"\0\0" else "<"  # of version 2 or 3

    def metadata(self) -> None:
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        _, _, pairs = self._number("I"), self._number("Q"), self._number("Q")
        for _ in range(pairs):
            self._skip(self._number("Q"))  # the key
            self._value(self._number("I"), DEEPEST)

    def _value(self, kind: int, deep: int) -> None:
        if kind in SIZES:
            self._skip(SIZES[kind])
        elif kind == STRING:
            self._skip(self._number("Q"))
        elif kind == ARRAY and deep:
            inner, count = self._number("I"), self._number("Q")
            self._entries += count
            if self._entries > MOST:
                raise ValueError(f"its arrays say that they hold {self._entries} entries")
            if inner in SIZES:
                self._skip(count * SIZES[inner])
            else:
                for _ in range(count):
                    self._value(inner, deep - 1)
        else:
            raise ValueError(f"a value of its metadata has type {kind}")

    def _number(self, form: str) -> int:
        start = self._at
        self._skip(struct.calcsize(form))
        return struct.unpack_from(self._order + form, self._data, start)[0]

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise ValueError(f"its header says that it goes on to byte {self._at}")
