"""Which method a problem gets when none is given, and why."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from bilevel import methods, trees
from bilevel.certificates import Convexity, Probe, probe
from bilevel.data import Data
from bilevel.data.sources import Whole
from bilevel.driver import validate
from bilevel.driver.result import Result
from bilevel.errors import Refused
from bilevel.methods.base import AbstractMethod, Unsupported, all_methods
from bilevel.problem import LOWER_CONSTRAINTS, Batch, Problem, Structure
from bilevel.selection.judge import judge_of
from bilevel.selection.race import race, score
from bilevel.selection.structure import solve_program
from bilevel.selection.tune import tune
from bilevel.typing import Lower, RandomKey, Upper

SMALL = 40  # entries of x and y together, up to which a problem is searched globally

DENSE = 1000  # entries of y up to which its Hessian is a matrix
WALL = 1e-5  # t of the barrier, times the curvature of the lower loss where that is below 1
LONGEST = 1e4  # step of x that the barrier method may take
CONVEX = (Convexity.STRONGLY_CONVEX, Convexity.CONVEX)

PLAIN = frozenset({Structure.UPPER_SET})
OWN = frozenset({Structure.HYPERGRADIENT, Structure.LOWER_STEP})


class Choice(NamedTuple):
    """A method, or an answer that is there already, or neither: then the global search."""

    method: AbstractMethod | None
    why: str  # the reason in a sentence
    result: Result | None = None  # of HiGHS, with a proven bound
    lags: bool = (
        False  # its y only follows the lower solution, which is to be solved for at the end
    )
    raced: "Raced | None" = None  # how its race went


class Raced(NamedTuple):
    """What a race says of a run of its winner."""

    second: AbstractMethod | None  # that came after the winner
    start: float  # the score of the start
    reached: float  # that of the winner
    score: Callable[[Upper, Lower], float]  # the upper loss at x with y solved for, from y


def choose(
    problem: Problem,
    x0: Upper,
    y0: Lower,
    *,
    data: Data | None = None,
    key: RandomKey | None = None,
    steps: int = 1000,
    programs: bool = True,
) -> Choice:
    """A method for a problem, by declared structure and `certificates.probe`.

    In this order:

    1. Mini-batches: SOBA with steps from `tune`, where y is free and that finds steps.
    2. Constraints that tie the levels, any set for y, or a lower loss that is not strongly convex
       at the start: the global search, where x and y have at most 40 entries together.
    3. A free y, x free or in a set with a projection, a lower loss strongly convex at the start:
       MAID, which finds its own steps.
    4. More variables, linear or convex-quadratic losses (`structure.as_program`) and linear
       constraints: HiGHS, which proves how good its answer is, if it finds one in a minute.
    5. A constraint on y*(x), y free, and a lower loss strongly convex at the start: MAID in an
       augmented Lagrangian.
    6. A constrained y of at most 1000 entries, a lower loss that is convex at the start: Barrier,
       which solves the lower problem along its central path and finds its own steps; in an
       augmented Lagrangian where there is a constraint on y*(x).
    7. All else that some method handles: the winner of `race`.

    Args:
        data, key, steps: as for `solve`.
        programs: whether HiGHS may be asked; it has no use for metrics, callbacks or checkpoints.

    Raises:
        Unsupported: no method handles the problem, or a constraint on y*(x) meets noise, a free y
            whose loss is not strongly convex, or a constrained y that is large or whose loss is not
            convex; the methods that handle what the problem declares are named.
        ValueError: no method got anywhere in the race.
    """
    declared = problem.structure()
    kinds = frozenset().union(*(found.kinds for found in declared))
    told = " and ".join(found.words for found in declared) or "no constraints"
    size = trees.size(x0) + trees.size(y0)
    if data is not None and data.blocks is not None:
        return raced(problem, x0, y0, "the data draw blocks", data, key, steps)
    if kinds & OWN:
        return raced(problem, x0, y0, told, data, key, steps)
    if not is_deterministic(data):
        return _stochastic(problem, x0, y0, told, kinds <= PLAIN, data, key, steps)
    small = size <= SMALL and problem.blocks is None
    batch = whole(data)
    traced = validate.check_each_loss(problem, x0, y0, batch)
    apart = validate.uncoupled(problem, x0, y0, traced)
    if apart and not small:
        raise Refused(apart)
    if apart:
        told = f"{told}, and losses that do not both depend on the other level"
    elif kinds <= PLAIN:
        look = probe(problem, x0, y0, batch)
        if look.convexity is Convexity.STRONGLY_CONVEX:
            return Choice(
                methods.MAID(),
                f"Chose MAID: {told}, losses without noise, and a lower loss that is strongly "
                f"convex at the start (eigenvalues {look.mu:.2g} to {look.L:.2g})",
            )
        told = f"{told}, and a lower loss that is {look.convexity.value} at the start"
    if small:
        return Choice(
            None,
            f"Chose the global search for small problems: {told}; {size} variables in all",
        )
    why = (
        f"Chose HiGHS: {told}, {size} variables, linear constraints, and losses that are "
        "polynomials of degree two at most"
    )
    found = solve_program(problem, x0, y0, batch, why=why) if programs else None
    if found is not None:
        return Choice(None, found.status.advice, found)
    told = f"{told}, and {size} variables (the global search takes {SMALL})"
    if kinds <= PLAIN | {Structure.UPPER_COUPLED} and not kinds <= PLAIN:
        look = probe(problem, x0, y0, batch)
        if look.convexity is Convexity.STRONGLY_CONVEX:
            return Choice(
                methods.AugmentedLagrangian(methods.MAID(), period=10, growth=2.0),
                f"Chose AugmentedLagrangian around MAID: {told}, losses without noise, and a "
                "lower loss that is strongly convex at the start",
            )
    if kinds & LOWER_CONSTRAINTS and trees.size(y0) <= DENSE:
        look = probe(problem, x0, y0, batch)
        if look.convexity in CONVEX:
            return _barrier(look, told, tied=Structure.UPPER_COUPLED in kinds)
    return raced(problem, x0, y0, told, data, key, steps)


def _barrier(look: Probe, told: str, tied: bool) -> Choice:
    t = WALL * (min(look.L, 1.0) if math.isfinite(look.L) and look.L > 0 else 1.0)
    method, name = methods.Barrier(t=t, max_step=LONGEST), "Barrier, which finds its own steps"
    if tied:
        method = methods.AugmentedLagrangian(method, period=10, growth=2.0)
        name = "AugmentedLagrangian around Barrier"
    return Choice(
        method,
        f"Chose {name}: {told}, losses without noise, and a lower loss that is "
        f"{look.convexity.value} at the start",
    )


def is_deterministic(data: Data | None) -> bool:
    """Whether every evaluation sees the same data."""
    return data is None or (isinstance(data.upper, Whole) and isinstance(data.lower, Whole))


def whole(data: Data | None) -> Batch:
    """All data, where there are any."""
    full = None if data is None else data.full
    return Batch() if full is None else full


def is_small(problem: Problem, x: Upper, y: Lower, data: Data | None) -> bool:
    """Whether the follower can be asked again globally."""
    plain = not any(found.kinds & OWN for found in problem.structure())
    few = trees.size(x) + trees.size(y) <= SMALL
    return plain and few and problem.blocks is None and is_deterministic(data)


def check_alone(**given: bool) -> None:
    """Arguments that belong to a method, which the global search does not use."""
    named = [name for name, is_given in given.items() if is_given]
    if named:
        raise ValueError(
            f"{' and '.join(named)} would go to a method, and this problem gets the global search "
            "for small problems, which has no use for them. Leave them out, or give a method."
        )


def _stochastic(problem, x0, y0, told, plain: bool, data, key, steps: int) -> Choice:
    if not plain:
        return raced(problem, x0, y0, f"{told}, with data that come in batches", data, key, steps)
    try:
        tuned = tune(methods.SOBA, problem, x0, y0, data=data, key=key)
    except TypeError as error:
        raise Unsupported(
            f"no method was given, and SOBA, which would be taken for data in batches, cannot be "
            f"tuned: {error} Give a method with its steps, such as bl.methods.SOBA()."
        ) from error
    except ValueError:  # a lower loss that is not strongly convex, or steps that all diverge
        told = f"{told}, with data that come in batches, and SOBA cannot be tuned"
        return raced(problem, x0, y0, told, data, key, steps)
    why = f"Chose SOBA with steps from bl.tune: {told}, and data in batches"
    return Choice(tuned.method, why, lags=True)


def raced(problem: Problem, x0, y0, told: str, data: Data | None, key, steps: int) -> Choice:
    """What wins a race, where neither theory nor size decides."""
    if any(Structure.UPPER_COUPLED in found.kinds for found in problem.structure()):
        raise _refusal(problem, told)
    if data is not None and data.streams:
        raise _refusal(problem, f"{told}, from an iterator, which a race cannot read twice")
    found = race(problem, x0, y0, data=data, key=key, until=steps)
    names = ", ".join(type(one.method).__name__ for one in found.entrants)
    name = type(found.method).__name__
    why = f"Chose {name} in a race of bl.race among {names}: {told}"
    judge = judge_of(Data() if data is None else data, jax.random.key(0) if key is None else key)
    winner, *others = (one for one in found.entrants if math.isfinite(one.score))
    went = Raced(
        others[0].method if others else None,
        found.start,
        winner.score,
        partial(score, problem, judge),
    )
    return Choice(found.method, why, lags=True, raced=went)


def _refusal(problem: Problem, told: str) -> Unsupported:
    able = [m for m in all_methods() if not m.unsupported(problem)]
    names = sorted(m.__name__ for m in able)
    return Unsupported(
        f"no method was given, and none can be chosen for this problem: {told}. Pass one that "
        f"handles it: {', '.join(names) or 'none yet'}."
    )
