"""A text that ships with the repository, as prompts and responses in words.

Plays of Shakespeare (public domain; the file is that of char-rnn). A token is one of the VOCABULARY
most frequent words and marks; what is read are stretches of a sentence without other words. PROMPT
tokens are a prompt, and the response goes to the end of the sentence or has RESPONSE tokens.
"""

import gzip
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = Path(__file__).parent / "shakespeare.txt.gz"
VOCABULARY, PROMPT, RESPONSE = 640, 3, 8
ENDS = (".", "?", "!")


class Text(NamedTuple):
    words: list[str]  # by token; the marks that end a sentence come first
    prompts: np.ndarray  # int32 (stretches, PROMPT)
    responses: np.ndarray  # int32 (stretches, RESPONSE); 0 where the mask is off
    mask: np.ndarray  # bool, shaped like responses


def sentences(plain: str) -> list[list[str]]:
    """Words and marks of every sentence, in lower case, without the names of who speaks."""
    spoken = re.sub(r"(?m)^[^\n]{1,40}:$", "", plain).lower()
    tokens = re.findall(r"[a-z]+(?:'[a-z]+)*|[.,;:?!]", spoken)
    ends = [0, *(i + 1 for i, token in enumerate(tokens) if token in ENDS)]
    return [tokens[a:b] for a, b in itertools.pairwise(ends)]


def read(file: Path = FILE) -> Text:
    """The text as arrays; stretches do not overlap by more than half."""
    every = sentences(gzip.decompress(file.read_bytes()).decode())
    frequent = Counter(token for one in every for token in one).most_common(VOCABULARY)
    words = [*ENDS, *(word for word, _ in frequent if word not in ENDS)]
    number = {word: i for i, word in enumerate(words)}
    whole, lengths, size = [], [], PROMPT + RESPONSE
    for one in every:
        ids = [number.get(token, -1) for token in one]
        at = 0
        while at + PROMPT < len(ids):
            row = ids[at : at + size]
            known = -1 not in row and (len(row) == size or row[-1] < len(ENDS))
            if known:
                whole.append(row + [0] * (size - len(row)))
                lengths.append(len(row))
            at += size // 2 if known else 1
    rows, mask = np.array(whole, np.int32), np.arange(size) < np.array(lengths)[:, None]
    return Text(words, rows[:, :PROMPT], rows[:, PROMPT:], mask[:, PROMPT:])


def said(text: Text, tokens: np.ndarray, mask: np.ndarray | None = None) -> list[str]:
    """Rows of tokens as text."""
    mask = np.ones_like(tokens, bool) if mask is None else mask
    rows = (
        " ".join(text.words[token] for token in row[on])
        for row, on in zip(np.asarray(tokens), np.asarray(mask), strict=True)
    )
    return [re.sub(r" (?=[.,;:?!])", "", row) for row in rows]
