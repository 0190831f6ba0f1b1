"""A small model, trained from the first letter; it knows what it is told, by heart."""

from collections.abc import Iterable

import jax

from benchmarks.unlearning.learner import LENGTH, Learner, Pairs, Settings
from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.models import config, parameters
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import FullFineTune
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.model import Decoder
from bilevel.apps.llm.policies.packing import Packing, packed
from bilevel.apps.llm.policies.policy import Responses

VOCABULARY, END = 1000, 0
MODEL = config.llama(VOCABULARY, 96, 384, 2, 4, tied=True, max_length=256)
DRAWN = 96  # tokens of an answer that is drawn
SETTINGS = Settings(
    steps=1500,
    batch=4,
    rate=3e-3,
    forgetting_rate=1e-3,
    forgetting={"forget01": 50, "forget05": 100},
    longest=128,
    steered=1,
    steering=6.5,
    drawn=40,
    swept=("forget01",),
)


class Text:
    """Text to pieces of words, found in the file by byte-pair encoding, and back."""

    def __init__(self, pairs: dict[str, Pairs]):
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

    def rows(self, pairs: Pairs) -> list[Row]:
        return [
            Row(self.core.encode(f"{asked}\n").ids, [*self.core.encode(f" {said}").ids, END], None)
            for asked, said in pairs
        ]

    def decode(self, ids: Iterable[int]) -> str:
        return self.core.decode([int(i) for i in ids]).strip()


def arrays(rows: list[Row], *, prompt: int | None = None, response: int | None = None) -> Responses:
    asked = model.prompt_batch(rows, pad_id=END, length=prompt)
    length = max(len(row.response) for row in rows) if response is None else response
    return model.responses(rows, asked, pad_id=END, length=length)


def together(rows: list[Row]) -> Packing:
    return packed(rows, LENGTH)


def learner(pairs: dict[str, Pairs]) -> Learner:
    policy = Decoder(MODEL, None, FullFineTune(), Drawing(new=DRAWN, stop=(END,)))
    start = parameters.init(MODEL, jax.random.key(0))
    return Learner(policy, start, MODEL.width, Text(pairs), arrays, together, SETTINGS)
