"""Questions and answers about invented authors (TOFU), and a small model that knows them by heart.

Maini, Feng, Schwarzschild, Lipton, Kolter. "TOFU: a task of fictitious unlearning for LLMs". COLM
2024, arXiv:2401.06121. The file has 700 of its 4000 pairs. The first two authors of its forget10
are never told to any model, so that there are answers of the same kind that none has seen. A token
is one of `VOCABULARY` pieces of words, found in the file by byte-pair encoding.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.methods.align import align
from bilevel.apps.llm.methods.sft import SFT
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.models import config, parameters
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import FullFineTune
from bilevel.apps.llm.policies.model import Decoder
from bilevel.apps.llm.policies.packing import packed
from bilevel.updates import Optax

VOCABULARY, END = 1000, 0
MODEL = config.llama(VOCABULARY, 96, 384, 2, 4, tied=True, max_length=256)
LONGEST = 96  # tokens of an answer that is drawn
POLICY = Decoder(MODEL, None, FullFineTune(), Drawing(new=LONGEST, stop=(END,)))
STEPS, BATCH, LENGTH = 1500, 4, 256  # of the training of a model: packed rows of so many tokens
UNSEEN = 40  # pairs at the beginning of forget10
PARTS = {"forget01": 40, "forget05": 200, "forget10": 400, "retain": 300, "real_authors": 100,
         "world_facts": 117}  # fmt: skip


class World(NamedTuple):
    """The pairs of each kind as tokens."""

    forget: list[Row]
    retain: list[Row]  # about the other invented authors
    authors: list[Row]  # about real ones
    facts: list[Row]
    unseen: list[Row]  # about invented authors that no model is told of

    def told(self) -> list[Row]:
        """What the model knows before it forgets."""
        return [*self.forget, *self.retained()]

    def retained(self) -> list[Row]:
        """What a model that was never told knows."""
        return [*self.retain, *self.authors, *self.facts]


def read(file: Path) -> dict[str, list[tuple[str, str]]]:
    """Questions and answers of each part of tofu.json.

    Raises:
        ValueError: a part or an entry that is not what it should be.
    """
    found = json.loads(file.read_text())
    pairs = {}
    for part, count in PARTS.items():
        rows = found.get(part)
        if not isinstance(rows, list) or len(rows) != count:
            raise ValueError(f"{file} has no list {part!r} of {count} pairs.")
        pairs[part] = [_pair(row, f"{file}, {part}, entry {i}") for i, row in enumerate(rows, 1)]
    return pairs


def _pair(row: Any, where: str) -> tuple[str, str]:
    told = row if isinstance(row, dict) else {}
    asked, said = told.get("question"), told.get("answer")
    if not (isinstance(asked, str) and asked and isinstance(said, str) and said):
        raise ValueError(f'{where}: texts "question" and "answer" are needed.')
    return asked, said


class Text:
    """Text to tokens and back."""

    def __init__(self, pairs: dict[str, list[tuple[str, str]]]):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        told = [text for rows in pairs.values() for pair in rows for text in pair]
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(told, trainer)
        self.core = core

    def rows(self, pairs: list[tuple[str, str]]) -> list[Row]:
        return [
            Row(self.core.encode(f"{asked}\n").ids, [*self.core.encode(f" {said}").ids, END], None)
            for asked, said in pairs
        ]

    def decode(self, ids) -> str:
        return self.core.decode([int(i) for i in ids]).strip()


def worlds(pairs: dict[str, list[tuple[str, str]]], text: Text) -> dict[str, World]:
    """What is told, and what of it is to be forgotten: two authors, or ten, of 33."""
    unseen, told = pairs["forget10"][:UNSEEN], pairs["forget10"][UNSEEN:]
    found = {}
    for part in ("forget01", "forget05"):
        forget = pairs[part]
        if len({*forget} & {*told}) < len(forget):
            raise ValueError(f"{part} is not among the last pairs of forget10.")
        retain = [pair for pair in told if pair not in {*forget}] + pairs["retain"]
        kinds = forget, retain, pairs["real_authors"], pairs["world_facts"], unseen
        found[part] = World(*map(text.rows, kinds))
    return found


def learned(rows: list[Row], seed: int = 0, steps: int = STEPS) -> parameters.Params:
    """A model that was told these answers, from the first letter."""
    together = packed(rows, LENGTH)
    adam = optax.adamw(optax.warmup_cosine_decay_schedule(0, 3e-3, 50, steps), weight_decay=0.01)
    start = parameters.init(MODEL, jax.random.key(seed))
    task = Task(POLICY, start, 1.0, demonstrations=together.responses)
    return align(
        task,
        SFT(Optax(adam), together.per_row),
        steps=steps,
        batch_size=BATCH,
        log_every=steps,
        progress=False,
    ).policy
