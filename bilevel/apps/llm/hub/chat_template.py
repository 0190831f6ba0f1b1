"""Chat templates: jinja2 in a sandbox that changes nothing, reaches nothing outside, and ends."""

import contextvars
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel.files.needs import needs

Message = Mapping[str, Any]
Template = str | Mapping[str, Any]  # one, or several by name

ROUNDS = 10**5  # of loops, and calls, that rendering may take
LETTERS = 10**7  # that a text may grow to
BITS = 4096  # that a number may grow to


def render(
    template: Template,
    messages: Sequence[Message],
    generation: bool,
    words: Mapping[str, Any],
) -> str:
    """A conversation in the words of a template.

    Args:
        generation: end with what precedes a response of the assistant.
        words: other names that the template reads. `tools` and `documents` are None when absent.

    Raises:
        ValueError: the template is none, or fails, or refuses the messages.
    """
    source = _chosen(template, words.get("tools"))
    names = {"tools": None, "documents": None} | dict(words)
    names |= {"messages": [dict(message) for message in messages]}
    spent = _spent.set([0])
    try:
        parts, letters = [], 0
        for part in _compiled(source).generate(names | {"add_generation_prompt": generation}):
            parts.append(part)
            letters += len(part)
            _check(letters, LETTERS, "letters are written")
        text = "".join(parts)
        text.encode()
    except ImportError:
        raise
    except Exception as error:  # whatever the code of a template can raise
        refused = isinstance(error, needs("jinja2").exceptions.TemplateError)
        kind = "" if refused else f"{type(error).__name__}: "
        told = " ".join(f"{kind}{error}".split())
        raise ValueError(f"the chat template refuses the messages: {told}") from error
    finally:
        _spent.reset(spent)
    return text


def _chosen(template: Template, tools: Any) -> str:
    """Of several templates "tool_use" where there are tools, else "default"."""
    if isinstance(template, Mapping):
        name = "tool_use" if tools is not None and "tool_use" in template else "default"
        if name not in template:
            given = ", ".join(map(repr, template)) or "none"
            raise ValueError(f"the model has chat templates {given}, and none is called 'default'.")
        template = template[name]
    if not isinstance(template, str):
        raise ValueError(f"the chat template is of type {type(template).__name__}; text is needed.")
    return template


# --- the sandbox -----------------------------------------------------------------------------

_spent: contextvars.ContextVar[list[int]] = contextvars.ContextVar("spent")


def _check(size: float, limit: int, what: str) -> None:
    if size > limit:
        raise ValueError(f"more than {limit} {what}.")


def _spend(rounds: int) -> None:
    spent = _spent.get()
    spent[0] += rounds
    _check(spent[0], ROUNDS, "rounds of loops and calls are made")


def _sized(value: Any) -> Any:
    """The value, where it is not too large."""
    if isinstance(value, str | list | tuple):
        _check(len(value), LETTERS, "letters or entries are made")
    return value


def _multiplied(left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(times, int):
            _check(len(many) * times, LETTERS, "letters or entries are made")
    if isinstance(left, int) and isinstance(right, int):
        _check(left.bit_length() + right.bit_length(), BITS, "bits of a number are made")


def _power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check(left.bit_length() * right, BITS, "bits of a number are made")


GROWS = {"*": _multiplied, "**": _power}


@functools.lru_cache
def _compiled(template: str):
    """With the names that transformers gives to templates."""
    names = "jinja2", "jinja2.sandbox", "jinja2.ext", "jinja2.visitor"
    jinja2, sandbox, extensions, visitor = map(needs, names)
    nodes = jinja2.nodes

    class Generation(extensions.Extension):
        """`{% generation %}` marks what the assistant says; it is rendered as it stands."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def through(name, node):
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    class Bounds(visitor.NodeTransformer):
        """Puts the filters below around what loops go over, and around joined texts."""

        def visit_For(self, node):
            self.generic_visit(node)
            node.iter = through("counted", node.iter)
            return node

        def visit_Concat(self, node):
            self.generic_visit(node)
            return through("sized", node)

    class Bounded(sandbox.ImmutableSandboxedEnvironment):
        """Counts the rounds of loops and the calls, and looks at the size of what is made."""

        intercepted_binops = frozenset({"+", *GROWS})

        def _parse(self, source, name, filename):
            return Bounds().visit(super()._parse(source, name, filename))

        def call(__self, __context, __obj, *args, **kwargs):
            _spend(1)
            for number in (*args, *kwargs.values()):
                if isinstance(number, int):
                    _check(number, LETTERS, "letters or entries are asked for")
            return _sized(super().call(__context, __obj, *args, **kwargs))

        def call_binop(self, context, operator, left, right):
            GROWS.get(operator, lambda *_: None)(left, right)
            return _sized(super().call_binop(context, operator, left, right))

    # With the context as an argument, a filter is not applied while the template is compiled.
    @jinja2.pass_context
    def counted(_, entries):
        entries = list(entries)
        _spend(len(entries))
        return entries

    @jinja2.pass_context
    def sized(_, value):
        return _sized(value)

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

    environment = Bounded(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters |= {"tojson": to_json, "counted": counted, "sized": sized}
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)
