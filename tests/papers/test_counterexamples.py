"""The talk's counterexamples: what is kept, what is drawn, and the words made of the numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import counterexamples as ce
from bilevel import methods

TASKS = ce.tasks()
KEPT = {(row.task, row.method, row.setting): row for row in ce.kept()}


def entry(name: str, setting: str) -> ce.Entry:
    return next(e for e in ce.entries() if (e.name, e.setting) == (name, setting))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_kept_results_are_those_of_a_run(task):
    again = ce.reached(task, entry("KwonDL", "penalty 20"))
    before = KEPT[task.name, "KwonDL", "penalty 20"]
    numbers = [field for field in ce.Reached._fields if isinstance(getattr(again, field), float)]
    for field in numbers:
        assert getattr(again, field) == pytest.approx(getattr(before, field), abs=1e-4), field
    assert again.y == pytest.approx(before.y, abs=1e-4)
    assert ce.verdict(again, task) == ce.verdict(before, task)


def test_every_method_is_run_or_refuses_or_is_named():
    run = {e.name for e in ce.entries()}
    for task in TASKS.values():
        kept = {method for name, method, _ in KEPT if name == task.name}
        takes = {
            m.__name__
            for m in methods.all_methods()
            if m.__module__.startswith("bilevel.") and not m.unsupported(task.case.problem)
        }
        assert takes == kept | (takes & set(ce.LEFT_OUT)), task.name
        assert run - kept == set(ce.refusals(task))


def ends(task: str, **changed) -> tuple[str, str]:
    """Kind and verdict of a good end with some numbers changed."""
    at = {
        "lpjump_q": {"x": 0.001, "y": [-1.0, 0.0], "upper": -0.8745},
        "fold_jump": {"x": 1.0, "y": [0.577], "upper": 1e-7},
    }[task]
    good = ce.Reached(
        task, "M", "", 0.0, "convex", 10, **at, gap=0.0, residual=0.0, violation=0.0,
        low=at["x"], high=at["x"],
    )  # fmt: skip
    row = good._replace(**changed)
    return ce.kind(row, TASKS[task]), ce.verdict(row, TASKS[task])


def test_verdicts_follow_the_numbers():
    assert ends("lpjump_q") == (ce.ANSWER, "finds the answer")
    assert ends("lpjump_q", x=0.015)[1] == "finds the answer, 0.015 off"
    assert ends("lpjump_q", low=-0.1, high=0.1)[1] == "finds the answer, moving"
    told = ends("lpjump_q", x=-0.5, upper=1.0)
    assert told == (ce.ELSEWHERE, "ends 0.5 beyond the jump: f is 1.9 above the best")
    told = ends("lpjump_q", x=0.99, upper=0.1, low=0.8, high=1.0)
    assert told[1].startswith("stays near its start, 0.99 before the jump, moving between 0.8 and")
    below = ends("lpjump_q", upper=-0.9, gap=0.04)
    assert below == (ce.UNSOLVED, "f is 0.025 below the best l, for y gives way by 0.04")
    assert ends("fold_jump", gap=0.4)[1].startswith("a lower minimum, not the least one: g is 0.4")
    assert ends("fold_jump", gap=0.4, residual=1.0)[1].startswith(ce.UNSOLVED)
    assert ends("fold_jump", violation=0.1)[0] == ce.UNSOLVED
    assert ends("fold_jump", x=float("nan")) == (ce.UNSOLVED, "diverged")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_best_is_the_least_of_the_drawn_hyper_objective(task):
    least = [(at, ce.upper(task, at, y)) for at, y, least in ce.branches(task) if least]
    x, value = (np.concatenate(parts) for parts in zip(*least, strict=True))
    assert value.min() == pytest.approx(task.best, abs=1e-4)
    assert task.at[0] - 0.01 <= x[value.argmin()] <= task.at[1] + 0.01


def test_drawn_branches_are_lower_minima():
    for task in TASKS.values():
        for at, y, _ in ce.branches(task):
            pair = np.stack([y, np.zeros_like(y)]) if task.linear else y
            for i in (5, 200, 390):
                here = jnp.asarray(pair[..., i])
                x, lower_set = jnp.asarray(at[i]), task.case.problem.lower_set
                nearby = [lower_set.project(here + d) for d in (-0.01, 0.01)]
                g = [float(task.case.problem.lower(x, z, None)) for z in (here, *nearby)]
                assert g[0] <= min(g[1:]) + 1e-12


@pytest.mark.parametrize(("task", "t"), [("lpjump_q", 0.01), ("lpjump_q", 0.001), ("fold", 0.1)])
def test_the_barrier_ends_at_the_least_of_the_drawn_curve(task, t):
    x = np.linspace(-0.5, 1.2, 1701)
    x = x[x > 0.05] if task == "fold" else x
    curve = ce.upper(TASKS[task], x, ce.y_wall(TASKS[task], x, t))
    end = KEPT[task, "Barrier", f"t {t:g}"]
    assert end.x == pytest.approx(x[curve.argmin()], abs=2e-3)
    assert end.upper == pytest.approx(curve.min(), abs=1e-3)
