"""Text to tokens and back, by the files of a checkpoint folder; no code of the folder is run.

tokenizer.json is read by the `tokenizers` package.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.apps.llm.hub import chat_template
from bilevel.apps.llm.hub.chat_template import Message, Template
from bilevel.files.needs import needs


@dataclass(frozen=True)
class Tokenizer:
    """What a folder says about text.

    Args:
        core: a `tokenizers.Tokenizer`.
        template: the chat template in jinja, several by name, or None.
        special: texts of special tokens by role, such as `{"bos_token": "<s>"}`.
        bos, eos, pad: their ids, or None. Absent, `pad` is `eos`.
        stop: ids that end a response: those of generation_config.json, else of config.json, else
            `eos`.
        size: the largest id and one more.
        begin: ids that the post-processor of tokenizer.json puts before a text.
    """

    core: Any
    template: Template | None
    special: Mapping[str, str]
    bos: int | None
    eos: int | None
    pad: int | None
    stop: tuple[int, ...]
    size: int
    begin: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens only where the text spells them."""
        return self.core.encode(text, add_special_tokens=False).ids

    def encode_parts(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Ids of one text in two parts: together they are `encode(first + second)`.

        A token that holds letters of both belongs to the second part.
        """
        found = self.core.encode(first + second, add_special_tokens=False)
        inside = (start < len(first) and end <= len(first) for start, end in found.offsets)
        cut = next((i for i, here in enumerate(inside) if not here), len(found.ids))
        return found.ids[:cut], found.ids[cut:]

    def beginning(self, ids: Sequence[int]) -> list[int]:
        """What stands before the ids of plain text: `begin`, unless they start with it.

        Text of a chat template begins with what the template writes.
        """
        n = len(self.begin)
        return [] if tuple(ids[:n]) == self.begin else list(self.begin)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of ids, with or without special tokens."""
        return self.core.decode([int(i) for i in ids], skip_special_tokens=not special)

    def chat(self, messages: Sequence[Message], *, generation: bool = False, **more: Any) -> str:
        """A conversation in the words the model was trained on.

        Args:
            messages: each `{"role": ..., "content": ...}`.
            generation: end with what precedes a response of the assistant.
            more: other names of the template, such as `tools` or `enable_thinking`.

        Raises:
            ValueError: there is no template, or it fails or refuses the messages.
        """
        if self.template is None:
            raise ValueError(
                "this tokenizer has no chat template; write prompts as plain text, or put a "
                "chat_template.jinja into the folder."
            )
        words = {**self.special, **more}
        return chat_template.render(self.template, messages, generation, words)


def load(folder: str | Path, *, vocab_size: int | None = None) -> Tokenizer:
    """Read the tokenizer of a checkpoint folder.

    Args:
        vocab_size: of the model; more tokens than that are refused.

    Raises:
        FileNotFoundError: no folder, or no tokenizer.json in it.
        ValueError: a file that is not what it should be, or more tokens than the model has.
        ImportError: tokenizers is not installed.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json. Only that format is read; transformers writes it by "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        )
    kept = [path for path in folder.iterdir() if path.is_file() and path.suffix in FORMATS]
    return from_files({path.name: path.read_bytes() for path in kept}, vocab_size=vocab_size)


FORMATS = (".json", ".jinja")


def from_files(files: Mapping[str, bytes], *, vocab_size: int | None = None) -> Tokenizer:
    """As `load`, from the files' contents, for example `Checkpoint.files`."""
    if "tokenizer.json" not in files:
        raise FileNotFoundError("the checkpoint carries no tokenizer.json.")
    size = size_of(files["tokenizer.json"])
    if vocab_size is not None and size > vocab_size:
        raise ValueError(
            f"tokenizer.json has tokens up to {size - 1}, but the model's vocabulary has "
            f"{vocab_size}; the tokenizer belongs to another model."
        )
    try:
        core = needs("tokenizers").Tokenizer.from_str(files["tokenizer.json"].decode())
    except ImportError:
        raise
    except Exception as error:  # the package raises nothing more special
        raise ValueError(f"tokenizer.json cannot be read: {error}") from error
    core.no_padding()
    core.no_truncation()
    begin = _begin(core)
    core.post_processor = None  # it also trims the offsets of tokens
    settings = _object(files, "special_tokens_map.json") | _object(files, "tokenizer_config.json")
    special = {
        role: _text(settings[role], role) for role in ROLES if settings.get(role) is not None
    }

    def number(role: str) -> int | None:
        if role not in special:
            return None
        found = core.token_to_id(special[role])
        if found is None:
            raise ValueError(f"tokenizer_config.json has {role} {special[role]!r}, not a token.")
        return found

    bos, eos, pad = number("bos_token"), number("eos_token"), number("pad_token")
    told = _stop(files)
    return Tokenizer(
        core=core,
        template=_template(files, settings),
        special=special,
        bos=bos,
        eos=eos,
        pad=eos if pad is None else pad,
        stop=told if told or eos is None else (eos,),
        size=size,
        begin=begin,
    )


def size_of(content: bytes) -> int:
    """The largest id in a tokenizer.json and one more.

    Raises:
        ValueError: it is not a tokenizer.json.
    """
    try:
        settings = json.loads(content)
        vocabulary = settings["model"]["vocab"]
        added = [token["id"] for token in settings.get("added_tokens") or []]
        listed = isinstance(vocabulary, list)
        ids = range(len(vocabulary)) if listed else vocabulary.values()
        return max([*ids, *added], default=-1) + 1
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"tokenizer.json is not one: {type(error).__name__} {error}. A JSON object with "
            "model.vocab is needed."
        ) from error


def pad(
    rows: Sequence[Sequence[int]],
    *,
    pad: int | None = 0,
    left: bool = False,
    length: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as one array: `(tokens, mask)`, int32 and bool, `(batch, time)`.

    Args:
        left: pad before, as is usual for prompts; otherwise after. The decoder takes either.
        length: of the result; the longest row when absent.

    Raises:
        ValueError: a row is longer than `length`.
    """
    longest = max((len(row) for row in rows), default=0)
    length = longest if length is None else length
    if longest > length:
        raise ValueError(
            f"a row has {longest} tokens, which do not fit into {length}; cut it first."
        )
    tokens = np.full((len(rows), length), 0 if pad is None else pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(len(row))
        tokens[i, place], mask[i, place] = row, True
    return tokens, mask


ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        found = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds a {type(found).__name__}; an object is needed.")
    return found


def _text(token: Any, role: str) -> str:
    """A special token, told as text or with its settings."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"tokenizer_config.json has {role} {token!r}; text is needed.")
    return text


def _template(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> Template | None:
    """As the files have it; `chat_template.render` tells what is wrong with it."""
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"chat_template.jinja is not UTF-8: {error}.") from error
    found = _object(files, "chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(found, list):  # several by name
        entries = [one for one in found if isinstance(one, dict)]
        return {str(one.get("name")): one.get("template") for one in entries}
    return found


def _stop(files: Mapping[str, bytes]) -> tuple[int, ...]:
    """Ids that end a response, by the first file that tells."""
    for name in ("generation_config.json", "config.json"):
        found = _object(files, name).get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(
                f"{name} has eos_token_id {found!r}; the number of a token, or a list, is needed."
            )
        if ids:
            return tuple(sorted(set(ids)))
    return ()


def _begin(core: Any) -> tuple[int, ...]:
    """What the post-processor puts before a text."""
    found = core.encode("a")
    return tuple(found.ids[: [*found.special_tokens_mask, 0].index(0)])
