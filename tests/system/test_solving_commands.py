"""`bilevel run`, `compare`, `probe` and `methods --for`, on a module in the working folder."""

import json

import numpy as np
import pytest
from commands import run

MODULE = """
import jax.numpy as jnp
import bilevel as bl

problem = bl.Problem(
    lambda x, y, batch: jnp.sum((y - 1.0) ** 2) / 2,
    lambda x, y, batch: jnp.sum((y - x) ** 2) / 2,
)
bounded = bl.Problem(problem.upper, problem.lower, lower_set=bl.sets.Box(0, 1))
vector = bl.Problem(lambda x, y, batch: y - x, problem.lower)
x0, y0 = jnp.zeros(3), jnp.zeros(3)
number = 3


def threads():
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(2)


def case():
    return bl.problems.quad()


def broken():
    raise RuntimeError("no such file")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "small_toy.py").write_text(MODULE)
    (tmp_path / "startless.py").write_text(MODULE.replace("x0, y0 =", "x1, y1 ="))
    (tmp_path / "whole.py").write_text(MODULE.replace("jnp.zeros(3),", "jnp.zeros(3, int),"))
    (tmp_path / "unfit.py").write_text("import nothing_of_this_name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


SOBA = "SOBA(x_update=0.1, y_update=0.5)"


def test_a_run_saves_reports_and_prints_json(folder):
    typed = ("run", "small_toy:problem", "--method", SOBA, "--steps", "600", "--json")
    found = run(*typed, "--save", "out.npz", "--report", "out.html")
    assert found.exit_code == 0, found.output
    (row,) = json.loads(next(line for line in found.output.splitlines() if line.startswith("[")))
    assert row["ok"]
    np.testing.assert_allclose(row["x"][0], 1, atol=1e-6)
    with np.load(folder / "out.npz", allow_pickle=False) as saved:
        np.testing.assert_allclose(saved["seed 0/x"], row["x"][0])
    assert "<svg" in (folder / "out.html").read_text("utf-8")


def test_a_run_without_a_method_says_what_was_chosen():
    found = run("run", "small_toy:problem", "--steps", "100")
    assert found.exit_code == 0, found.output
    assert "Chose MAID" in found.output


def test_a_probe():
    found = run("probe", "small_toy:problem", "--json")
    assert json.loads(found.output)["L"] == pytest.approx(1)
    assert "strongly convex" in run("probe", "small_toy:problem", columns=80).output


@pytest.mark.slow
def test_a_comparison():
    typed = ("compare", "small_toy:problem", "--methods", "SOBA,TTSA", "--steps", "100", "--json")
    rows = json.loads(run(*typed).output.splitlines()[-1])
    assert {row["name"] for row in rows} == {"SOBA", "TTSA"}
    assert rows[0]["race"] < 1e-2
    assert rows[0]["race"] <= rows[1]["race"]
    there = json.loads(run(*typed, "--executor", "small_toy:threads").output.splitlines()[-1])
    assert [row["x"] for row in there] == [row["x"] for row in rows]
    told = "small_toy:number: executor is of type int; one with submit(function, argument) is"
    assert told in run(*typed, "--executor", "small_toy:number").output


def test_methods_that_handle_a_problem():
    rows = json.loads(run("methods", "--for", "small_toy:problem", "--json").output)
    assert {"SOBA", "MAID"} <= {row["name"] for row in rows}
    constrained = run("methods", "BSVRBv1", "--for", "small_toy:problem", "--json")
    assert constrained.exit_code == 0


def test_the_table_of_methods_fits_80_columns():
    lines = run("methods", columns=80).output.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("SOBA" in line for line in lines) >= 2  # SOBA, MASOBA


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("small_toy", "module:name is needed"),
        ("no_such_module:problem", "the module 'no_such_module' cannot be imported"),
        ("../small_toy.py:problem", "'../small_toy.py' is no name of a module; go to the folder"),
        ("unfit:problem", "it needs nothing_of_this_name"),
        ("small_toy:problme", "has no 'problme'. Did you mean problem?"),
        ("small_toy:number", "is int; a bl.Problem"),
        ("small_toy:broken", "raised RuntimeError: no such file"),
        ("startless:problem", "module startless has no x0"),
    ],
)
def test_what_is_no_problem_is_one_sentence(problem, words):
    found = run("probe", problem)
    assert found.exit_code == 2
    assert found.output.startswith("bilevel probe: ")
    assert words in found.output
    assert found.output.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "compare", "probe"])
@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("small_toy:vector", "Problem.upper returned float64[3]; a scalar is needed."),
        ("whole:problem", "x0 is int64[3]; only floating arrays can be optimised."),
    ],
)
def test_functions_and_starts_of_a_wrong_type_are_one_sentence(command, problem, words):
    found = run(command, problem)
    assert found.exit_code == 2
    assert found.output.startswith(f"bilevel {command}: {words}")
    assert found.output.count("\n") == 1


def test_a_method_that_does_not_handle_a_problem_is_refused_with_1_as_nothing_typed_is_wrong():
    found = run("run", "small_toy:bounded", "--method", SOBA)
    assert found.exit_code == 1
    assert "SOBA cannot solve this problem: lower_set is a Box" in found.output


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("SOBBA", "there is no method SOBBA. Did you mean SOBA?"),
        ("SOBA(", "a name with plain values is needed"),
        ("SOBA(0.1)", "a name with plain values is needed"),
        ("SOBA(x_update=open('f'))", "SOBA(x_update=open('f')): "),
        ("SOBA(x_updat=0.1)", "unexpected keyword argument 'x_updat'"),
    ],
)
def test_a_method_that_is_not_read_is_one_sentence(method, words):
    found = run("run", "small_toy:problem", "--method", method)
    assert found.exit_code == 2
    assert words in found.output
