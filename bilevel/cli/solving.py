"""`bilevel run`, `compare` and `probe`: any problem of a module of the user's."""

import contextlib
import dataclasses
import math
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import bilevel as bl
from bilevel import jobs, report, trees
from bilevel.certificates import probe as probe_at
from bilevel.cli import typed
from bilevel.cli.console import plain_console
from bilevel.cli.options import Compare, Probe, Run
from bilevel.cli.tables import new_table, write_json
from bilevel.driver import Outcome, Result, validate
from bilevel.global_search.functions import double_precision
from bilevel.methods import AbstractMethod
from bilevel.problem import Batch

MOST_ENTRIES = 1000  # of x and of y in the output for machines


def run(options: Run) -> bool:
    """Solve the problem once for each seed, then print, save and report the results.

    Raises:
        ValueError: in one sentence, before anything runs.
        KeyboardInterrupt: Ctrl-C was pressed; the results so far are kept.
    """
    with _computing(options.float64):
        one = typed.load(options.problem)
        page = report.check_writable(options.report) if options.report else None
        save = report.check_writable(options.save, "the result") if options.save else None
        console = plain_console(soft_wrap=True, stderr=options.json)
        method = _method(options, one, console)
        results = {}
        for seed in range(options.seeds):
            results[f"seed {seed}"] = found = _solve(one, method, options, seed)
            if found.status.outcome is Outcome.INTERRUPTED:
                break
            if not options.json:
                console.print(f"seed {seed}: {found}")
        _write(results, {"run": method}, page, save, f"{options.problem} by bilevel run", console)
        if options.json:
            write_json([_as_json(name, found) for name, found in results.items()])
    return _ended(results)


def compare(options: Compare) -> bool:
    """Race the methods, run each with its best steps, print and report.

    Raises:
        ValueError: in one sentence, before anything runs.
        KeyboardInterrupt: Ctrl-C was pressed; the results so far are kept.
    """
    with _computing(options.float64):
        one = typed.load(options.problem)
        page = report.check_writable(options.report) if options.report else None
        console = plain_console(soft_wrap=True, stderr=options.json)
        executor = typed.executor(options.executor)
        names = [name.strip() for name in (options.methods or "").split(",") if name.strip()]
        raced = bl.race(
            one.problem,
            one.x0,
            one.y0,
            data=one.data,
            methods=[typed.method_class(name) for name in names] or None,
            seconds=options.seconds,
            executor=executor,
        )
        job = partial(_there, options) if executor else partial(_solve, one, options=options)
        found = jobs.each(job, (entrant.method for entrant in raced.entrants), executor)
        results, methods = {}, {}
        for entrant, result in zip(raced.entrants, found, strict=True):
            name = type(entrant.method).__name__
            methods[name], results[name] = entrant.method, result
            if results[name].status.outcome is Outcome.INTERRUPTED:
                break
        scores = {type(e.method).__name__: e.score for e in raced.entrants}
        if options.json:
            rows = [_as_json(name, found) for name, found in results.items()]
            write_json([row | {"race": scores[row["name"]]} for row in rows])
        else:
            console.print(_table(results, scores))
            for name, method in methods.items():
                console.print(f"  {name}: {method!r}")
            for left_out in raced.left_out:
                console.print(left_out)
        title, lead = f"Methods on {options.problem}", " ".join(raced.left_out)
        _write(results, methods, page, None, title, console, lead)
    return _ended(results)


def probe(options: Probe) -> None:
    """Print curvature, convexity and the steps that follow at the start.

    Raises:
        ValueError: in one sentence.
    """
    with _computing(options.float64):
        one = typed.load(options.problem)
        full = None if one.data is None else one.data.full
        batch = Batch() if full is None else full
        x0, y0 = validate.check_start(one.problem, one.x0, one.y0)
        validate.check_each_loss(one.problem, x0, y0, batch)
        look = probe_at(one.problem, x0, y0, batch)
        if options.json:
            told = {name: _plain(value) for name, value in look._asdict().items()}
            write_json(told)
        else:
            plain_console(soft_wrap=True).print(str(look))


def _method(options: Run, one: typed.Loaded, console: Console) -> AbstractMethod | None:
    """The method that was typed, with steps that suit where none were; `None` lets solve choose."""
    if options.method is None:
        return None
    method = typed.method(options.method)
    if isinstance(method, type):
        names = {field.name for field in dataclasses.fields(method)}
        has_theory = method.theory.__func__ is not AbstractMethod.theory.__func__
        if "x_update" in names and has_theory:
            method = bl.tune(method, one.problem, one.x0, one.y0, data=one.data).method
        else:
            method = method()
    console.print(f"{method!r}\n")
    return method


def _there(options: Compare, method: AbstractMethod) -> Result:
    """A job where an executor runs it; the module is imported there."""
    with _computing(options.float64):
        return _solve(typed.load(options.problem), method, options)


def _solve(one: typed.Loaded, method, options: Run | Compare, seed: int = 0) -> Result:
    checkpoint = getattr(options, "checkpoint", None)
    folder = checkpoint / f"seed-{seed}" if checkpoint else None
    own = {"metrics": one.metrics, "checkpoint": folder} if method or folder or one.metrics else {}
    return bl.solve(
        one.problem,
        method,
        one.x0,
        one.y0,
        data=one.data,
        steps=options.steps,
        key=jax.random.key(seed),
        log_every=max(1, options.steps // 50),
        **own,
    )


def _write(
    results: Mapping[str, Result],
    methods: Mapping[str, Any],
    page: Path | None,
    save: Path | None,
    title: str,
    console: Console,
    lead: str = "",
) -> None:
    if save is not None:
        with save.open("wb") as opened:
            np.savez(opened, **_arrays(results))  # pyright: ignore[reportArgumentType]
        console.print(f"Saved to {save}")
    if page is not None:
        report.write(page, title, report.of(results, settings=methods), lead)
        console.print(f"Report written to {page}")


def _arrays(results: Mapping[str, Result]) -> dict[str, np.ndarray]:
    """The leaves of x and y of every run, by run and path."""
    return {
        f"{name}/{variable}{jax.tree_util.keystr(path)}": np.asarray(leaf)
        for name, result in results.items()
        for variable in ("x", "y")
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(result, variable))
    }


def _as_json(name: str, result: Result) -> dict[str, Any]:
    last = {key: _plain(column[-1]) for key, column in result.history.items() if len(column)}
    return {
        "name": name,
        "ok": result.status.ok,
        "outcome": result.status.outcome.value,
        "advice": result.status.advice,
        "steps": result.stats.steps,
        "seconds": _plain(result.stats.seconds),
        "last": last,
        "x": _values(result.x),
        "y": _values(result.y),
    }


def _values(tree: Any) -> list | None:
    """The entries, leaf after leaf; `None` where they are too many to print."""
    if trees.size(tree) > MOST_ENTRIES:
        return None
    return [np.asarray(leaf, float).tolist() for leaf in jax.tree.leaves(tree)]


def _plain(value: Any) -> Any:
    """A value for JSON, which has no NaN."""
    if isinstance(value, (str, bool, type(None))):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    if hasattr(value, "value"):  # of an enumeration
        return value.value
    number = float(value)
    return number if math.isfinite(number) else None


def _table(results: Mapping[str, Result], scores: Mapping[str, float]):
    table = new_table(
        "Methods",
        caption="Race: the upper loss at its end, with the lower problem solved anew.",
    )
    table.add_column("", style="bold", no_wrap=True)
    for name in ("race", "upper loss", "steps", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    for name, result in results.items():
        upper = result.history.get("upper", np.array([np.nan]))[-1]
        seconds = result.stats.seconds - result.stats.compile_seconds
        numbers = (f"{scores[name]:.5g}", f"{upper:.5g}", f"{result.stats.steps}", f"{seconds:.2f}")
        table.add_row(name, *numbers, result.status.outcome.value)
    return table


def _ended(results: Mapping[str, Result]) -> bool:
    """Whether all went well.

    Raises:
        KeyboardInterrupt: a run was stopped from the keyboard.
    """
    if any(found.status.outcome is Outcome.INTERRUPTED for found in results.values()):
        raise KeyboardInterrupt
    return all(found.status.ok for found in results.values())


@contextlib.contextmanager
def _computing(double: bool) -> Iterator[None]:
    """Double precision, where asked for; what our checks say of a type is a `ValueError`, too."""
    with double_precision() if double else contextlib.nullcontext():
        try:
            yield
        except TypeError as error:
            *_, (frame, _) = traceback.walk_tb(error.__traceback__)
            if not frame.f_globals["__name__"].startswith("bilevel."):
                raise
            raise ValueError(str(error)) from error
