"""What may import what: a module imports only from layers before its own."""

from typing import NamedTuple


class Layer(NamedTuple):
    """Modules of one height, and what they are for."""

    modules: tuple[str, ...]
    about: str


LAYERS = (
    Layer(("errors",), "errors of mathematics, on which the commands end with 1"),
    Layer(
        (
            "trees",
            "typing",
            "fields",
            "sharding",
            "host",
            "options",
            "losses",
            "lazy",
            "effort",
            "jaxprs",
            "_version",
        ),
        "pytrees, aliases, meshes, settings, linear losses, lazy imports, compiler effort, traces",
    ),
    Layer(("jobs",), "independent jobs, for an executor"),
    Layer(("files",), "tables, arrays and pictures that users bring, and packages that read them"),
    Layer(("mip",), "linear and quadratic bilevel programs with integers, by HiGHS"),
    Layer(("sets",), "constraint sets and their projections"),
    Layer(("problem",), "the problem, and the samples of a step"),
    Layer(("oracles",), "derivatives of the two losses, fused"),
    Layer(("schedules",), "numbers that change with the step"),
    Layer(("updates", "linear", "estimators"), "moves, linear solvers, variance reduction"),
    Layer(("lower",), "solvers of the lower problem, and models of its response"),
    Layer(("hypergrad",), "hypergradients"),
    Layer(("methods",), "`base.py`, and a folder a family; no family imports another"),
    Layer(("certificates",), "stationarity, feasibility, curvature, checks"),
    Layer(("data",), "where samples come from"),
    Layer(("driver",), "`run`, and runs with checks, history and checkpoints"),
    Layer(("global_search",), "small problems with any constraints"),
    Layer(("selection",), "which method, which step sizes; the front door `solve`"),
    Layer(("problems",), "test problems with known answers"),
    Layer(("layers",), "convolutions that are fast inside a loop"),
    Layer(("interop",), "models of PyTorch as JAX functions"),
    Layer(("report",), "figures and the HTML report"),
    Layer(("apps",), "applications; no app imports another"),
    Layer(("sklearn",), "estimators for scikit-learn"),
    Layer(("cli",), "the command `bilevel`"),
    Layer(("__main__",), "`python -m bilevel`"),
)


def layers_table() -> str:
    """The layers as a Markdown table."""
    lines = ["| layer | where | what |", "|---|---|---|"]
    for rank, layer in enumerate(LAYERS):
        where = ", ".join(f"`{name}`" for name in layer.modules if name != "_version")
        lines.append(f"| {rank} | {where} | {layer.about} |")
    return "\n".join(lines)
