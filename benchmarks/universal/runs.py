"""Run instances, and keep each as it ends."""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import bilevel as bl
import bilevel.global_search  # before the clock of the first run starts
import bilevel.selection
from benchmarks.harness import RESULTS, machine
from benchmarks.universal import families, hindsight, rivals, rows, tolls
from benchmarks.universal.case import Case, Kind
from bilevel.methods.base import Unsupported

KEPT = RESULTS / "universal.json"
FAMILIES = (
    families.free, families.on_simplex, families.box, families.polyhedron, families.linear,
    tolls.tolls, families.entropic, families.ball, families.upper_coupled, families.flat,
    families.wells, families.own_hypergradient, families.own_step,
    rows.finite_sum, rows.blocks, rows.mixture,
)  # fmt: skip
STRUCTURE = {  # of a family, in the words of the class `Structure` and of the page on choosing
    "free": "none", "on_simplex": "upper set with a projection", "box": "lower set, simple",
    "polyhedron": "lower set, linear", "linear": "lower set moved by x, linear",
    "tolls": "lower set of equations and bounds", "entropic": "lower set, simple",
    "ball": "lower set h(x, y) <= 0", "upper_coupled": "upper constraint on y*(x)",
    "flat": "lower loss not strongly convex", "wells": "lower loss not convex",
    "own_hypergradient": "declared hypergradient", "own_step": "declared lower step",
    "finite_sum": "finite sum, mini-batches", "blocks": "blocks drawn at random",
    "mixture": "mini-batches and a lower set",
}  # fmt: skip
REFUSED, FAILED = "refused", "error"
NO_RIVALS = 100  # the largest size at which a person's tools are run: beyond, none ends in time
SINGLE = "single"  # every method of `hindsight.METHODS`, each a row of its own


class Run(NamedTuple):
    """One instance, solved by one way."""

    name: str  # of the function that makes the family
    family: str
    structure: str
    n: int
    who: str
    kind: str  # a `Kind`, or refused, or error
    above: float | None  # what is left of the fall of f from the start to the best
    claimed: bool  # it says that this is a solution
    seconds: float  # of the processor
    said: str

    @property
    def solved(self) -> bool:
        return self.kind == Kind.SOLVED.value

    @property
    def false_claim(self) -> bool:
        return self.claimed and not self.solved


def door(case: Case) -> tuple:
    """`bl.solve` without a method. It claims a solution where it says that it converged."""
    result = bl.solve(case.problem, x0=case.x0, y0=case.y0, data=case.data, progress=False)
    claimed = result.status.outcome is bl.Outcome.CONVERGED
    return result.x, result.y, claimed, str(result.status)


def _rival(solver):
    def run(case: Case) -> tuple:
        *found, claimed = solver(case)
        return *found, claimed, ""

    return run


Way = Callable[[Case], tuple[Any, Any, bool, str]]  # x, y, whether it claims a solution, and words
RIVALS: dict[str, Way] = {
    "SLSQP": _rival(rivals.slsqp),
    "genetic": _rival(rivals.genetic),
    "Optuna": _rival(rivals.optuna),
}
WHO = ("bl.solve", SINGLE, *RIVALS)


def ways(name: str, n: int, who: str) -> dict[str, Way]:
    """What is run of a family, by the name it has in the rows."""
    if who == "bl.solve":
        return {who: door}
    if who != SINGLE:
        return {who: RIVALS[who]} if n <= NO_RIVALS else {}
    found = hindsight.METHODS[name](n)
    return {
        f"{SINGLE} {i}: {type(method).__name__}": partial(hindsight.run, method=method)
        for i, method in enumerate(found)
    }


def run(n: int, who: str, only: Sequence[str], *, again: bool = False) -> None:
    """Every family of a size, by one way; those that are kept are left out."""
    for make in FAMILIES:
        name = make.__name__
        known = {(row.n, row.who, row.name) for row in kept()}
        if (only and name not in only) or not _fits(make, n):
            continue
        for told, way in ways(name, n, who).items():
            if (n, told, name) in known and not again:
                continue
            found = one(make(n, np.random.default_rng(n)), name, told, way)
            print(
                f"{found.family}, n = {n}, {told}: {found.kind}, {found.seconds:.0f} s", flush=True
            )
            keep(found)


def one(case: Case, name: str, who: str, way: Way) -> Run:
    """Solve and judge an instance. Nothing that was compiled before helps."""
    jax.clear_caches()
    begin = time.process_time()
    try:
        x, y, claimed, said = way(case)
        spent = time.process_time() - begin
        kind, above = case.judge(x, y)
        kind = kind.value
    except Unsupported as error:
        kind, above, claimed, said = REFUSED, None, False, str(error)
        spent = time.process_time() - begin
    except Exception as error:  # it is a line of the table
        kind, above, claimed, said = FAILED, None, False, f"{type(error).__name__}: {error}"
        spent = time.process_time() - begin
    structure = STRUCTURE[name]
    return Run(name, case.family, structure, case.n, who, kind, above, claimed, spent, said[:300])


def _fits(make, n: int) -> bool:
    """The networks have three sizes."""
    return make is not tolls.tolls or n in tolls.SIZES


def keep(found: Run) -> None:
    """Add a run to the kept ones, or put it in the place of the last of its kind."""
    same = (found.name, found.n, found.who)
    others = [row for row in kept() if (row.name, row.n, row.who) != same]
    rounded = found._replace(
        seconds=round(found.seconds, 1), above=found.above and float(f"{found.above:.3g}")
    )
    order = {make.__name__: i for i, make in enumerate(FAMILIES)}
    every = sorted([*others, rounded], key=lambda row: (order[row.name], row.n, row.who))
    lines = ",\n".join(json.dumps(row._asdict(), ensure_ascii=False) for row in every)
    record = f'{{"machine": {json.dumps(machine())},\n"runs": [\n{lines}\n]}}\n'
    KEPT.write_text(record)


def kept() -> list[Run]:
    if not KEPT.exists():
        return []
    return [Run(**row) for row in json.loads(KEPT.read_text())["runs"]]
