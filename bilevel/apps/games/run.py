"""`bilevel mip`: a bilevel program from files, solved to a proven gap."""

import csv
from pathlib import Path

import numpy as np
from rich.console import Console

from bilevel import mip, report
from bilevel.apps.games.settings import Mip
from bilevel.files import mps

SHOWN = 40  # columns that are printed
ZERO = 1e-9


def read(program: str | Path, follower: str | Path) -> mip.Program:
    """A bilevel program from MPS and AUX; a leader that maximises has its sign turned.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in one sentence, with the line.
    """
    linear = mps.read_mps(program)
    return _program(linear, mps.read_aux(follower, linear))


def _program(linear: mps.Linear, follower: mps.Follower) -> mip.Program:
    return mip.Program(
        cost=-linear.cost if linear.maximize else linear.cost,
        rows=linear.rows,
        row_lower=linear.row_lower,
        row_upper=linear.row_upper,
        lower=linear.lower,
        upper=linear.upper,
        integer=linear.integer,
        follower=follower.columns,
        follower_rows=follower.rows,
        follower_cost=follower.cost,
        names=linear.columns,
    )


def run(given: Mip) -> bool:
    """Read, solve, and show. Returns whether the gap was closed.

    Raises:
        ValueError, OSError, ImportError: in one sentence, before anything runs.
    """
    out = report.check_writable(given.out, "the answer") if given.out else None
    linear = mps.read_mps(given.mps)
    program = _program(linear, mps.read_aux(given.aux, linear))
    answer = mip.solve(program, nodes=given.nodes, big_m=given.big_m)
    console = Console(soft_wrap=True, highlight=False)
    sign = -1 if linear.maximize else 1
    console.print(f"{answer.ending.value}, after {answer.nodes} programs")
    if answer.z is not None:
        value, bound = (sign * side + linear.constant for side in (answer.value, answer.bound))
        console.print(f"leader    {value:.9g}, bound {bound:.9g}, relative gap {answer.gap:.1e}")
        best = f"{answer.follower_best:.9g} is its best, solved anew"
        console.print(f"follower  {answer.follower_value:.9g}; {best}")
        some = np.flatnonzero(np.abs(answer.z) > ZERO)
        for i in some[:SHOWN]:
            level = "y" if program.follower[i] else "x"
            console.print(f"  {level} {program.names[i]} = {answer.z[i]:.9g}", markup=False)
        if len(some) > SHOWN:
            console.print(f"  and {len(some) - SHOWN} more that are not zero")
    if answer.big_m_fails:
        console.print(f"A big-M of {given.big_m:g} cuts this point off.")
    if out is not None and answer.z is not None:
        with out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("column", "level", "value"))
            levels = np.where(program.follower, "follower", "leader")
            writer.writerows(zip(program.names, levels, map(repr, answer.z.tolist()), strict=True))
    return answer.ending is mip.Ending.OPTIMAL
