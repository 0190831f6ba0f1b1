"""Every public name says what it is and names what it takes; every method names its paper."""

import ast
import enum
import importlib
import inspect
import re
import sys
import textwrap
from typing import Protocol

import pytest

from bilevel.methods import all_methods
from docs.reference import NAMESPACES, public

NAMES = [
    (namespace, name)
    for namespace in NAMESPACES
    for name in public(importlib.import_module(namespace))
]
# What these are is told once, in the first pages of the docs.
EVERYWHERE = {"problem", "x", "y", "x0", "y0", "batch", "key"}


def own(found) -> str:
    """Its docstring, not one that it inherits or that Python makes."""
    text = (vars(found).get("__doc__") if isinstance(found, type) else found.__doc__) or ""
    made = isinstance(found, type) and text.startswith(f"{found.__name__}(")
    return "" if made else inspect.cleandoc(text)


def commented(found: type) -> set[str]:
    """Fields with a comment beside or above them, or a docstring below."""
    source = textwrap.dedent(inspect.getsource(found))
    lines, body = source.splitlines(), ast.parse(source).body[0].body  # pyright: ignore
    told = set()
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            beside = lines[node.lineno - 2].strip().startswith("#") or any(
                "  # " in line for line in lines[node.lineno - 1 : node.end_lineno]
            )
            below = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            told |= {node.target.id} if beside or below else set()
    return told


def told(namespace: str, found) -> set[str]:
    """Words of its docstring, of its base classes' and of the namespace's, which its page shows."""
    classes = found.__mro__ if isinstance(found, type) else ()
    classes = [one for one in classes if one.__module__.startswith("bilevel.")]
    texts = [own(found), *map(own, classes), importlib.import_module(namespace).__doc__ or ""]
    words = set(re.findall(r"\w+", "\n".join(texts)))
    return words.union(*map(commented, classes))


def taken(found) -> list[str]:
    """Names of what it takes. Enums are looked up, errors are raised and protocols are shapes."""
    kinds = (enum.Enum, Exception)
    if isinstance(found, type) and (issubclass(found, kinds) or Protocol in found.__bases__):
        return []
    return list(inspect.signature(found).parameters)


@pytest.mark.parametrize(("namespace", "name"), NAMES)
def test_a_public_name_is_described_and_names_what_it_takes(namespace, name):
    found = getattr(importlib.import_module(namespace), name)
    first = own(found).split("\n\n")[0]
    assert re.match(r"[A-Z(`‖∇]", first), f"it begins with {first!r}; a sentence is needed"
    assert first.endswith((".", ":")), f"it begins with {first!r}; a sentence is needed"
    missing = {*taken(found)} - told(namespace, found) - EVERYWHERE
    assert missing == set(), f"the docstring does not name {sorted(missing)}"


def test_a_method_names_its_paper():
    """By its arXiv number or its title, in the docstring of its module or its own."""
    silent = []
    for method in all_methods():
        if method.__module__.startswith("bilevel."):
            text = f"{sys.modules[method.__module__].__doc__} {method.__doc__}"
            paper, text = method.reference(), " ".join(text.split()).lower()
            if paper.title.lower() not in text and (paper.arxiv or "?") not in text:
                silent.append(method.__name__)
    assert silent == []
