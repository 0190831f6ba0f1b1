"""Packages that only language models need."""

import importlib
from types import ModuleType


def needs(name: str) -> ModuleType:
    """Import an optional package, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(
            f"language models need {package}, which is not installed: pip install 'bilevel[llm]'"
        ) from error
