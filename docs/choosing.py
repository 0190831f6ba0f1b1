"""The page 'which method': questions a reader asks, answered from what the classes declare."""

from collections.abc import Callable

from bilevel import Problem
from bilevel.methods import AbstractMethod, LowerAssumption, all_methods
from bilevel.problem import Structure

START = (
    "Not sure? `bl.solve(problem, x0=x0, y0=y0)` without a method looks at what the problem "
    "declares, chooses, and says in `result.status` what it chose and why ([how](no-method.md)). "
    "`bl.race(problem, x0, y0, data=data)` compares methods on your problem. With data, "
    "`bl.tune(bl.methods.SOBA, problem, x0, y0, data=data)` finds the steps. The questions below "
    "narrow the choice; a method that does not fit is refused before anything compiles, with the "
    "names of those that do. What each one does, costs and assumes stands on [the methods' "
    "page](methods.md)."
)

SETS = {
    Structure.UPPER_SET: "x stays in a set with a projection (`upper_set=bl.sets.Box(...)`)",
    Structure.UPPER_COUPLED: "a constraint on the solution, `h(x, y*(x)) <= 0` "
    "(`upper_set=bl.sets.Coupled(h)`)",
    Structure.LOWER_SET: "y stays in a fixed set with a simple projection (box, ball, simplex)",
    Structure.LOWER_EQUATIONS: "y solves linear equations, which may move with x",
    Structure.LOWER_LINEAR: "linear inequalities and equations in y, which may move with x "
    "(some methods need them fixed, and say so)",
    Structure.LOWER_COUPLED: "inequalities `h(x, y) <= 0` of any kind",
    Structure.BLOCKS: "many lower problems that share x, a few drawn a step (`Data(blocks=...)`)",
    Structure.HYPERGRADIENT: "the hypergradient is known (`Problem(hypergradient=...)`)",
    Structure.LOWER_STEP: "the lower step is no gradient step (`Problem(lower_step=...)`)",
}
LOSSES = {
    LowerAssumption.STRONGLY_CONVEX: "strongly convex in y: one minimiser, smooth in x",
    LowerAssumption.CONVEX: "convex in y, perhaps with many minimisers",
    LowerAssumption.DOMINATED: "not convex, but without bad stationary points: gradient-dominated "
    "(Polyak-Łojasiewicz)",
    LowerAssumption.NONCONVEX: "nonconvex in y",
}
PRODUCTS = ("hvp", "cross", "cross_transposed")
MATRICES = ("dense_hessian", "dense_cross")


def page(generated: str) -> str:
    """The page as Markdown."""
    every = _every()
    parts = ["# Which method", "", generated, "", START]
    parts += _table(
        "What is constrained?",
        "declared",
        {words: [m for m in every if kind in m.supports] for kind, words in SETS.items()},
    )
    parts += _table(
        "What is the lower loss like?",
        "g(x, ·) is",
        {words: [m for m in every if m.below is kind] for kind, words in LOSSES.items()},
        "A row holds for the rows above it as well: a method made for convex losses takes strongly "
        "convex ones. `bl.certificates.probe` looks at your problem at one point.",
    )
    parts += _table(
        "Mini-batches, or all data at every step?",
        "the theory allows for",
        {
            "samples at both levels": [m for m in every if m.samples],
            "exact gradients only": [m for m in every if not m.samples],
        },
        "Methods of the second row run on samples, too, but settle where the noise lets them.",
    )
    parts += _table(
        "Which derivatives can you afford?",
        "a step takes",
        {
            "gradients only": _priced(every, lambda calls: not calls(*PRODUCTS, *MATRICES)),
            "products with second derivatives": _priced(
                every, lambda calls: calls(*PRODUCTS) and not calls(*MATRICES)
            ),
            "whole matrices (y has a few hundred entries)": _priced(
                every, lambda calls: calls(*MATRICES)
            ),
        },
        "With the default settings. A product costs about two gradients.",
    )
    by_memory: dict[str, list[type[AbstractMethod]]] = {}
    for method in every:
        by_memory.setdefault(method.memory, []).append(method)
    parts += _table(
        "How large are x and y?", "the state holds", dict(sorted(by_memory.items(), key=_size))
    )
    return "\n".join(parts) + "\n"


def _table(
    question: str, head: str, rows: dict[str, list[type[AbstractMethod]]], note: str = ""
) -> list[str]:
    lines = ["", f"## {question}", "", f"| {head} | methods |", "|---|---|"]
    lines += [f"| {words} | {_names(found)} |" for words, found in rows.items() if found]
    return [*lines, *(["", note] if note else [])]


def _every() -> list[type[AbstractMethod]]:
    ours = (m for m in all_methods() if m.__module__.startswith("bilevel."))
    return sorted(ours, key=lambda m: m.__name__.lower())


def _names(found: list[type[AbstractMethod]]) -> str:
    """Links to the methods' page; of nearly all, those that are missing."""
    missing = [m for m in _every() if m not in found]
    shown, start = (missing, "all but ") if 2 * len(missing) < len(found) else (found, "")
    return start + ", ".join(f"[{m.__name__}](methods.md#{m.__name__.lower()})" for m in shown)


def _size(item: tuple[str, list]) -> tuple[int, str]:
    return len(item[0]), item[0]


def _priced(every: list[type[AbstractMethod]], fits: Callable) -> list[type[AbstractMethod]]:
    """Those whose calls with default settings fit; some need a setting, and are left out."""
    found = []
    for method in every:
        try:
            price = method().price(Problem(_nothing, _nothing))._asdict()
        except TypeError:
            continue
        if fits(lambda *names, price=price: any(price[name] for name in names)):
            found.append(method)
    return found


def _nothing(x, y, batch):
    return 0.0
