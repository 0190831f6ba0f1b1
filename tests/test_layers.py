"""Arrows between modules point down only, and no method imports another."""

import ast
from pathlib import Path

import bilevel

PACKAGE = Path(bilevel.__file__).parent

# Lower layers first; a module may import its own folder and any layer above it in this list.
LAYERS = [
    ("trees", "typing", "sharding", "host", "_version"),
    ("sets",),
    ("problem",),
    ("oracles",),
    ("schedules",),
    ("updates", "linear", "estimators", "responses"),
    ("lower",),
    ("hypergrad",),
    ("loops",),
    ("methods",),
    ("certificates",),
    ("data",),
    ("driver",),
    ("problems",),
    ("report",),
    ("apps",),
    ("cli",),
    ("__init__",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).with_suffix("").parts, path


def imports(path: Path, importable: set[str]):
    """Dotted names below `bilevel` that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "bilevel" and len(parts) > 1 and parts[1] in importable:
                yield parts[1:]


def test_every_module_has_a_layer():
    assert {parts[0] for parts, _ in modules()} <= RANK.keys()


def test_arrows_point_down():
    upward = [
        f"{'.'.join(parts)} imports {'.'.join(target)}"
        for parts, path in modules()
        for target in imports(path, set(RANK))
        if target[0] != parts[0] and RANK[target[0]] >= RANK[parts[0]]
    ]
    assert upward == []


def test_no_method_imports_another():
    files = {p.stem for p in (PACKAGE / "methods").glob("*.py")} - {"__init__", "base"}
    crossed = [
        f"{stem} imports {'.'.join(target)}"
        for stem in files
        for target in imports(PACKAGE / "methods" / f"{stem}.py", {"methods"})
        if target[1] in files
    ]
    assert len(files) >= 4
    assert crossed == []


def test_no_circle_inside_a_folder():
    graph = {}
    for parts, path in modules():
        if len(parts) == 2 and parts[1] != "__init__":
            inside = {t[1] for t in imports(path, {parts[0]}) if len(t) > 1}
            graph[parts] = {(parts[0], name) for name in inside} - {parts}
    while True:
        leaves = {node for node, targets in graph.items() if not targets & graph.keys()}
        if not leaves:
            break
        graph = {node: targets for node, targets in graph.items() if node not in leaves}
    assert graph == {}
