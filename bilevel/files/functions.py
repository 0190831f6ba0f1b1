"""What users name on the command line as `module:name`, from their own folder."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple


class Named(NamedTuple):
    """What a name stands for, and the module it is of."""

    value: Any
    module: ModuleType


def load_named(text: str) -> Named:
    """What `module:name` names, imported as Python run in this folder would.

    Importing runs the module's code, as `python -m module` does: name only modules of your own.

    Raises:
        ValueError: in one sentence: no such form, module or name, or the module fails.
    """
    module, name = _imported(text)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"{module.__name__} has no {name!r}.{hint}")
    return Named(getattr(module, name), module)


def load_function(text: str) -> Callable:
    """The function that `module:function` names, as `load_named` finds it.

    Raises:
        ValueError: in one sentence: no such form, module or function, or the module fails.
    """
    module, name = _imported(text)
    function = getattr(module, name, None)
    if not callable(function):
        has = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        told = ", ".join(has) or "none"
        raise ValueError(f"{module.__name__} has no function {name!r}; it has {told}.")
    return function


def _imported(text: str) -> tuple[ModuleType, str]:
    """The module that `module:name` names, and the name."""
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise ValueError(f"{text!r} names nothing in a module; module:name is needed.")
    if not all(map(str.isidentifier, module.split("."))):
        raise ValueError(
            f"{module!r} is no name of a module; go to the folder of the file, and give its name "
            "without .py."
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module), name
    except ModuleNotFoundError as error:
        wanting = "" if error.name == module.partition(".")[0] else f" (it needs {error.name})"
        raise ValueError(
            f"the module {module!r} cannot be imported from {here}{wanting}; give the name of a "
            "file of this folder, without .py."
        ) from error
    except Exception as error:  # whatever the user's code raises
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"importing the module {module!r} failed: {told}.") from error
