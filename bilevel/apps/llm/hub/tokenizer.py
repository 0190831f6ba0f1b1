"""Text to tokens and back, by the files of a checkpoint folder; no code of the folder is run.

tokenizer.json is read by the `tokenizers` package, the chat template by jinja2 in a sandbox that
changes nothing and reaches nothing outside.
"""

import datetime
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.apps.llm.needs import needs

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Tokenizer:
    """What a folder says about text.

    Args:
        core: a `tokenizers.Tokenizer`.
        template: the chat template in jinja, or None.
        special: texts of special tokens by role, such as `{"bos_token": "<s>"}`.
        bos, eos, pad: their ids, or None. Absent, `pad` is `eos`.
        stop: ids that end a response.
        size: the largest id and one more.
    """

    core: Any
    template: str | None
    special: Mapping[str, str]
    bos: int | None
    eos: int | None
    pad: int | None
    stop: tuple[int, ...]
    size: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens only where the text spells them."""
        return self.core.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of ids, with or without special tokens."""
        return self.core.decode([int(i) for i in ids], skip_special_tokens=not special)

    def chat(self, messages: Sequence[Message], *, generation: bool = False, **more: Any) -> str:
        """A conversation in the words the model was trained on.

        Args:
            messages: each `{"role": ..., "content": ...}`.
            generation: end with what precedes a response of the assistant.
            more: other names of the template, such as `enable_thinking`.

        Raises:
            ValueError: there is no template, or it refuses the messages.
        """
        if self.template is None:
            raise ValueError(
                "this tokenizer has no chat template; write prompts as plain text, or put a "
                "chat_template.jinja into the folder."
            )
        jinja2 = needs("jinja2")
        words = {**self.special, **more}
        try:
            return _compiled(self.template).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=generation,
                **words,
            )
        except jinja2.exceptions.TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from error


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
    settings = _object(files, "special_tokens_map.json") | _object(files, "tokenizer_config.json")
    special = {role: _text(settings[role]) for role in ROLES if settings.get(role) is not None}

    def number(role: str) -> int | None:
        if role not in special:
            return None
        found = core.token_to_id(special[role])
        if found is None:
            raise ValueError(f"tokenizer_config.json has {role} {special[role]!r}, not a token.")
        return found

    bos, eos, pad = number("bos_token"), number("eos_token"), number("pad_token")
    return Tokenizer(
        core=core,
        template=_template(files, settings),
        special=special,
        bos=bos,
        eos=eos,
        pad=eos if pad is None else pad,
        stop=_stop(_object(files, "generation_config.json"), eos),
        size=size,
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
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds a {type(found).__name__}; an object is needed.")
    return found


def _text(token: Any) -> str:
    """A special token, told as text or with its settings."""
    return token["content"] if isinstance(token, dict) else token


def _template(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode()
    found = _object(files, "chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(found, list):  # several by name
        return {one["name"]: one["template"] for one in found}.get("default")
    return found


def _stop(generation: Mapping[str, Any], eos: int | None) -> tuple[int, ...]:
    settings = generation.get("eos_token_id")
    ids = set(settings if isinstance(settings, list) else [] if settings is None else [settings])
    return tuple(sorted(ids | ({eos} if eos is not None else set())))


# --- the chat template ---------------------------------------------------------------------


@functools.lru_cache
def _compiled(template: str):
    """With the names that transformers gives to templates."""
    jinja2, sandbox, extensions = map(needs, ("jinja2", "jinja2.sandbox", "jinja2.ext"))

    class Generation(extensions.Extension):
        """`{% generation %}` marks what the assistant says; it is rendered as it stands."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)
