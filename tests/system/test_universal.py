"""The families of the benchmark of `bl.solve` without a method: their known answers hold."""

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from benchmarks.universal import families, hindsight, runs, show
from benchmarks.universal.case import Kind


@pytest.mark.slow
@pytest.mark.parametrize("make", runs.FAMILIES, ids=lambda make: make.__name__)
def test_no_point_is_better_than_the_best_and_no_answer_than_the_followers(make):
    case = make(10, np.random.default_rng(10))
    assert case.value(case.x0) > case.best
    assert case.judge(case.x0, jnp.asarray(case.answer(np.asarray(case.x0))))[0] in (
        Kind.WORSE,
        Kind.INFEASIBLE,
    )
    rng = np.random.default_rng(0)
    lower_set, upper_set = case.problem.lower_set, case.problem.upper_set
    for size in (0.01, 0.3, 1.0):
        x = case.x0 + size * jnp.asarray(rng.normal(size=case.x0.shape))
        x = upper_set.project(x) if upper_set.projectable else x
        answer = jnp.asarray(case.answer(np.asarray(x)))
        allowed = not upper_set.moves or float(upper_set.violation(answer, x)) == 0
        assert case.value(x) >= case.best or not allowed
        other = answer + size * jnp.asarray(rng.normal(size=answer.shape))
        if lower_set.projectable:
            other = lower_set.project(other, x)
        elif float(lower_set.violation(other, x)) > 0:
            other = 0.9 * answer
        assert float(lower_set.violation(answer, x)) < 1e-7
        g = case.problem.lower
        assert g(x, answer, case.whole.lower) <= g(x, other, case.whole.lower) + 1e-8


def row(**changes):
    given = {
        "name": "linear", "family": "linear", "structure": "lower set moved by x, linear",
        "n": 10, "who": "bl.solve",
        "kind": Kind.SOLVED.value, "above": 0.0, "claimed": True, "seconds": 3.2, "said": "",
    }  # fmt: skip
    return runs.Run(**given | changes)


def test_the_table_tells_what_was_claimed_falsely():
    text = show.table([row(), row(n=100, kind=Kind.WORSE.value), row(who="SLSQP", claimed=False)])
    assert (
        "| linear | lower set moved by x, linear | solved, 3 s | **worse**, *claimed*, 3 s" in text
    )
    assert "`bl.solve`: 1 of 2 solved, 0 refused; claimed falsely: linear (n = 100)." in text
    assert "| SLSQP n = 10 |" in text


def test_the_best_single_method_is_the_fastest_that_solves():
    rows = [
        row(seconds=6.0),
        row(who="single 0: Barrier", seconds=4.0),
        row(who="single 1: BLOCC", seconds=1.0, kind=Kind.WORSE.value),
        row(who="single 2: MEHA", seconds=2.0),
        row(n=100, kind=Kind.WORSE.value, claimed=False),
        row(n=100, who="single 0: Barrier", seconds=3.0),
        row(n=1000),
        row(n=1000, who="single 0: Barrier", kind=Kind.WORSE.value),
    ]
    assert [(pair.ratio, pair.best.who) for pair in show.against(rows)] == [
        (3.0, "single 2: MEHA"),
        (pytest.approx(3.2 / 3), "single 0: Barrier"),
    ]
    text = show.table(rows)
    assert "| linear | MEHA, 2 s (3.0 times) | Barrier, 3 s | none solves it |" in text
    assert "0 of the 2 instances that one solves" in text
    assert "not by `bl.solve`: linear (n = 100)." in text


def test_every_family_has_single_methods_that_handle_it():
    for make in runs.FAMILIES:
        case = make(10, np.random.default_rng(10))
        for method in hindsight.METHODS[make.__name__](10):
            method.check(case.problem)


def test_runs_are_kept_once(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "KEPT", tmp_path / "kept.json")
    for seconds in (1.0, 2.0):
        runs.keep(row(seconds=seconds))
    runs.keep(row(n=100))
    assert [(r.n, r.seconds) for r in runs.kept()] == [(10, 2.0), (100, 3.2)]


def test_every_structure_has_a_family():
    assert set(runs.STRUCTURE) == {make.__name__ for make in runs.FAMILIES}
    told = " ".join(runs.STRUCTURE.values())
    for word in ("hypergradient", "lower step", "blocks", "mini-batches", "equations", "h(x, y)"):
        assert word in told


@pytest.mark.slow
def test_where_maid_gets_stuck_a_race_comes_after_it():
    case = families.wells(30, np.random.default_rng(30))
    result = bl.solve(case.problem, x0=case.x0, y0=case.y0, progress=False)
    assert "MAID came first" in result.status.advice
    assert case.judge(result.x, result.y)[0] is Kind.SOLVED
