"""The pages of the API reference, one a namespace, and the copies of files at the root."""

import importlib
from pathlib import Path
from types import ModuleType

NAMESPACES = {
    "bilevel": "Solving",
    "bilevel.methods": "Methods",
    "bilevel.sets": "Constraint sets",
    "bilevel.lower": "Solvers of the lower problem",
    "bilevel.hypergrad": "Hypergradients",
    "bilevel.linear": "Linear solvers",
    "bilevel.updates": "Updates",
    "bilevel.schedules": "Schedules",
    "bilevel.estimators": "Variance reduction",
    "bilevel.certificates": "Certificates",
    "bilevel.problems": "Test problems",
    "bilevel.report": "Reports",
    "bilevel.sharding": "Devices",
    "bilevel.trees": "Pytrees",
    "bilevel.host": "The machine",
    "bilevel.interop.torch": "PyTorch modules",
}


def write(folder: Path) -> None:
    """Write `api/*.md` and `changelog.md` below a folder, where they changed."""
    names = list(NAMESPACES)
    _keep(folder / "api" / "index.md", _index(names))
    for name in names:
        _keep(folder / "api" / f"{name}.md", _page(name))
    changelog = (folder.parent / "CHANGELOG.md").read_text("utf-8")
    _keep(folder / "changelog.md", changelog.replace("](docs/", "]("))


def _index(names: list[str]) -> str:
    rows = "\n".join(names)
    return (
        "# API reference\n\nEvery public name, with shapes, units, errors and its source.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{rows}\n```\n"
    )


def _page(name: str) -> str:
    """Each public class or function on its own, in the order of the alphabet."""
    module = importlib.import_module(name)
    lines = [f"# {NAMESPACES[name]}: `{name}`", "", f"```{{eval-rst}}\n.. automodule:: {name}"]
    lines += ["   :no-members:", ""]
    for own in public(module):
        kind = "autoclass" if isinstance(getattr(module, own), type) else "autofunction"
        lines += [f".. {kind}:: {name}.{own}", ""]
    return "\n".join([*lines, "```", ""])


def public(module: ModuleType) -> list[str]:
    """Names of classes and functions; those of `__all__`, or those that the module defines."""
    every = getattr(module, "__all__", None) or [
        name
        for name, found in vars(module).items()
        if not name.startswith("_") and getattr(found, "__module__", "") == module.__name__
    ]
    return sorted((name for name in every if callable(getattr(module, name))), key=str.lower)


def _keep(path: Path, content: str) -> None:
    if not path.exists() or path.read_text("utf-8") != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
