"""Packages that not every user needs."""

import importlib
from types import ModuleType


def needs(name: str, *, extra: str = "llm", what: str = "language models") -> ModuleType:
    """Import an optional package, or say how to install it.

    Args:
        extra: that installs it.
        what: what needs it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(
            f"{what} need {package}, which is not installed: pip install 'bilevel[{extra}]'"
        ) from error
