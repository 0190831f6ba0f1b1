"""`bilevel chat`: talk to a model."""

import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from bilevel.apps.llm.data import encode
from bilevel.apps.llm.data.jsonl import Text
from bilevel.apps.llm.hub import find, tokenizer
from bilevel.apps.llm.hub.checkpoint import Checkpoint
from bilevel.apps.llm.hub.tokenizer import Tokenizer
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.policies.model import generate
from bilevel.cli.console import plain_console
from bilevel.cli.options import Chat

STRETCH = 64  # prompts are padded to a multiple of it, so that few programs are compiled


def run(options: Chat) -> None:
    """Answer one prompt, or every line of standard input.

    Raises:
        ValueError, FileNotFoundError, ImportError: in one sentence.
    """
    console = plain_console(soft_wrap=True)
    drawing = Drawing(new=options.new, temperature=options.temperature, top_p=options.top_p)
    talk = open_talk(options.model, drawing, options.seed)
    if options.prompt is not None:
        _tell(console, talk.say(options.prompt))
        return
    console.print("An empty line ends the talk.", style="dim")
    for line in sys.stdin:
        if not line.strip():
            break
        _tell(console, talk.say(line.rstrip("\n")))


def plain(text: str) -> str:
    """What a model said without control characters, so that a terminal obeys none."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def _tell(console: Console, said: str) -> None:
    """To the letter: the console would read codes of emoji, and turn tabs into spaces."""
    console.file.write(f"{plain(said)}\n")
    console.file.flush()


@dataclass
class Talk:
    """A conversation so far."""

    model: Checkpoint
    text: Tokenizer
    drawing: Drawing
    key: jax.Array
    messages: list[dict[str, Any]] = field(default_factory=list)

    def say(self, line: str) -> str:
        """The model's answer; the oldest turns are forgotten where the context is full.

        Raises:
            ValueError: the line alone is too long.
        """
        self.messages.append({"role": "user", "content": line})
        while True:
            ids = encode.prompt_ids(self._prompt(), self.text)
            if len(ids) + self.drawing.new <= self.model.config.max_length:
                break
            if len(self.messages) == 1:
                self.messages = []
                raise ValueError(
                    f"the prompt has {len(ids)} tokens, the answer up to {self.drawing.new}; the "
                    f"model reads {self.model.config.max_length}. Shorten it, or lower --new."
                )
            del self.messages[:2]
        length = min(-(-len(ids) // STRETCH) * STRETCH, self.model.config.max_length)
        tokens, mask = tokenizer.pad(
            [ids], pad=self.text.pad, left=True, length=max(length, len(ids))
        )
        self.key, now = jax.random.split(self.key)
        loaded, asked = self.model, (jnp.asarray(tokens), jnp.asarray(mask))
        said = generate(loaded.config, loaded.params, *asked, key=now, drawing=self.drawing)
        answer = self.text.decode(np.asarray(said.tokens[0])[np.asarray(said.response[0])])
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def _prompt(self) -> Text:
        """All messages; without a chat template the last line as it stands, and no memory."""
        return self.messages[-1]["content"] if self.text.template is None else self.messages


def open_talk(folder: Path, drawing: Drawing, seed: int) -> Talk:
    """Load what `find.find` finds, and begin."""
    found = find.find(folder)
    text = found.tokenizer
    drawing = Drawing(drawing.new, drawing.temperature, drawing.top_k, drawing.top_p, text.stop)
    return Talk(found.load(dtype=jnp.float32), text, drawing, jax.random.key(seed))
