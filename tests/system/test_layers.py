"""Arrows between modules point down, nothing is circular, families and apps stay apart."""

import ast
import itertools
from collections.abc import Iterable
from pathlib import Path

import bilevel
from docs.layers import LAYERS

PACKAGE = Path(bilevel.__file__).parent
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.modules}
RANK["__init__"] = len(LAYERS)

Module = tuple[str, ...]  # ("methods", "tracked", "soba"); a package is its folder


def modules() -> dict[Module, Path]:
    """Every module of the package, by its path below it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[Module]:
    """Modules of the package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    dotted = (tuple(name.split(".")) for name in names)
    return {longest(parts[1:]) for parts in dotted if parts[0] == "bilevel" and len(parts) > 1}


def longest(parts: Module) -> Module:
    """The module that a dotted name lies in."""
    return next(
        (parts[:n] for n in range(len(parts), 0, -1) if parts[:n] in MODULES), ("__init__",)
    )


GRAPH = {module: imports(path) for module, path in MODULES.items()}


def circle(graph: dict[Module, set[Module]]) -> set[Module]:
    """Nodes that lie on a circle or lead to one."""
    while True:
        leaves = {node for node, targets in graph.items() if not targets & graph.keys()}
        if not leaves:
            return set(graph)
        graph = {node: targets for node, targets in graph.items() if node not in leaves}


def arrows(folder: Module) -> dict[Module, set[Module]]:
    """Arrows between the children of a folder: files, and folders as wholes."""
    n = len(folder) + 1
    graph: dict[Module, set[Module]] = {}
    for module, targets in GRAPH.items():
        if module[: n - 1] == folder and len(module) >= n:
            inside = {t[:n] for t in targets if t[: n - 1] == folder and len(t) >= n}
            graph.setdefault(module[:n], set()).update(inside - {module[:n]})
    return graph


def crossings(parent: Module, but: Iterable[str] = ()) -> list[str]:
    """Arrows from one folder below `parent` to another."""
    return [
        f"{'.'.join(module)} imports {'.'.join(target)}"
        for module, targets in GRAPH.items()
        for target in targets
        if module[: len(parent)] == target[: len(parent)] == parent
        and len(module) > len(parent) + 1  # inside a folder, not beside it
        and len(target) > len(parent)
        and MODULES.get(target[: len(parent) + 1], Path()).name == "__init__.py"
        and module[len(parent)] != target[len(parent)]
        and target[len(parent)] not in but
    ]


def test_every_module_has_a_layer():
    assert {module[0] for module in MODULES} == RANK.keys()


def test_arrows_point_down():
    upward = [
        f"{'.'.join(module)} imports {'.'.join(target)}"
        for module, targets in GRAPH.items()
        for target in targets
        if target[0] != module[0] and RANK[target[0]] >= RANK[module[0]]
    ]
    assert upward == []


def test_no_circle_at_any_depth():
    folders = {module[:n] for module in MODULES for n in range(len(module))}
    assert set(map(len, folders)) >= {0, 1, 2, 3}
    assert list(itertools.chain.from_iterable(circle(arrows(folder)) for folder in folders)) == []


def test_no_family_of_methods_imports_another():
    families = {module[1] for module in MODULES if module[0] == "methods" and len(module) > 2}
    assert len(families) >= 7
    assert crossings(("methods",)) == []


def test_no_method_imports_another():
    """Loops and wrappers are shared; a file that defines methods is nobody's block."""
    defining = {
        module
        for module, path in MODULES.items()
        if module[0] == "methods"
        and len(module) == 3
        and "paper: ClassVar[str]" in path.read_text()
    }
    assert len(defining) > 50
    crossed = [(m, t) for m in defining for t in GRAPH[m] if t in defining and t != m]
    assert crossed == []


def test_no_app_imports_another():
    assert crossings(("apps",)) == []
