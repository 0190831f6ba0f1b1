"""Functions that users name on the command line: `module:function`, from their own folder."""

import importlib
import os
import sys
from collections.abc import Callable


def load_function(text: str) -> Callable:
    """The function that `module:function` names, imported as Python run in this folder would.

    Importing runs the module's code, as `python -m module` does: name only modules of your own.

    Raises:
        ValueError: in one sentence: no such form, module or name, or the module fails.
    """
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise ValueError(f"{text!r} names no function; module:function is needed.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        wanting = "" if error.name == module.partition(".")[0] else f" (it needs {error.name})"
        raise ValueError(
            f"the module {module!r} cannot be imported from {here}{wanting}; give the name of a "
            "file of this folder, without .py."
        ) from error
    except Exception as error:  # whatever the user's code raises
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"importing the module {module!r} failed: {told}.") from error
    function = getattr(found, name, None)
    if not callable(function):
        has = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
        raise ValueError(f"{module} has no function {name!r}; it has {', '.join(has) or 'none'}.")
    return function
