"""Graphs: the lower problem by least squares, the search by brute force, planted graphs found."""

import numpy as np
import pytest
from commands import run

from bilevel.apps.dag import graphs
from bilevel.apps.dag.notears import notears
from bilevel.apps.dag.score import brute_force, covariance, score, weights
from bilevel.apps.dag.topo import restarts, topo


def test_the_lower_problem_is_least_squares_on_the_columns_before():
    X = graphs.sample(6, 50, edges=2, seed=3).data
    X = X - X.mean(0)
    C, order = covariance(X), np.random.default_rng(0).permutation(6)
    W, left = weights(C, order), 0.0
    for place, j in enumerate(order):
        before = order[:place]
        coefficients = np.linalg.lstsq(X[:, before], X[:, j], rcond=None)[0]
        np.testing.assert_allclose(W[before, j], coefficients, atol=1e-10)
        assert (W[order[place:], j] == 0).all()
        left += np.mean((X[:, j] - X[:, before] @ coefficients) ** 2) / 2
    np.testing.assert_allclose(score(C, order), left)
    np.testing.assert_allclose(np.mean((X - X @ W) ** 2) * 6 / 2, left)


@pytest.mark.parametrize("seed", range(10))
def test_topo_equals_brute_force_and_finds_the_planted_graph(seed):
    planted = graphs.sample(5, 2000, edges=1.5, seed=seed)
    C = covariance(planted.data)
    found = topo(C, np.random.default_rng(seed).permutation(5))
    np.testing.assert_allclose(found.score, score(C, brute_force(C)), rtol=1e-9)
    assert graphs.distance(graphs.cut(found.W), planted.W) == 0
    assert found.rounds <= 5


@pytest.mark.parametrize(("d", "edges"), [(20, 2), (20, 4), (30, 4)])
def test_larger_planted_graphs(d, edges):
    """A search may end in a local minimum; the best of ten is at least as good as the truth."""
    for seed in range(3):
        planted = graphs.sample(d, 1000, edges=edges, seed=seed)
        C = covariance(planted.data)
        found = restarts(C, 10)
        assert found.score <= score(C, planted.order)
        assert graphs.distance(graphs.cut(found.W), planted.W) <= 1


def test_few_candidates_at_first_are_followed_by_more():
    planted = graphs.sample(8, 2000, edges=1.5, seed=1)
    C, start = covariance(planted.data), np.random.default_rng(1).permutation(8)
    few, more, all_of_them = (
        topo(C, start, small=1, large=1),
        topo(C, start, small=1, large=28, patience=100),
        topo(C, start),
    )
    np.testing.assert_allclose(more.score, all_of_them.score, rtol=1e-9)
    assert more.score < few.score
    assert more.rounds >= few.rounds


@pytest.mark.slow
def test_notears_finds_a_small_graph():
    planted = graphs.sample(5, 2000, edges=1.5, seed=1)
    W = graphs.cut(notears(covariance(planted.data)))
    assert graphs.is_acyclic(W)
    assert graphs.distance(W, planted.W) == 0


def test_distance_counts_a_turned_edge_once():
    a = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0.0]])
    assert graphs.distance(a, a.T) == 1
    assert graphs.distance(a, np.array([[0, 2, 1], [0, 0, 0], [0, 0, 0.0]])) == 1
    assert graphs.distance(a, 0 * a) == 1
    assert not graphs.is_acyclic(a + a.T)


def table(path, columns) -> None:
    names, values = list(columns), np.stack(list(columns.values()), 1)
    np.savetxt(path, values, delimiter=",", header=",".join(names), comments="")


@pytest.mark.slow
def test_the_command_tells_the_edges(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planted = graphs.sample(4, 500, edges=1.5, seed=2)
    table("data.csv", {name: planted.data[:, i] for i, name in enumerate("abcd")})
    found = run("dag", "data.csv", "--edges", "edges.csv", "--notears")
    assert found.exit_code == 0, found.output
    head, *edges = (tmp_path / "edges.csv").read_text().splitlines()
    assert head == "from,to,weight"
    told = {tuple(edge.split(",")[:2]) for edge in edges}
    assert told == {("abcd"[i], "abcd"[j]) for i, j in np.argwhere(planted.W != 0)}
    assert f"{len(told)} edges" in found.output
    assert "NOTEARS: " in found.output
    page = (tmp_path / "bilevel-dag.html").read_text("utf-8")
    assert page.count("<figure") == 1
    again = run("dag", "data.csv", "--columns", "a", "--columns", "b")
    assert again.exit_code == 0
    assert "c →" not in again.output


NOISE = np.random.default_rng(0).normal(size=(3, 20))
A, B, C = NOISE


@pytest.mark.parametrize(
    ("columns", "more", "told"),
    [
        ({"a": A}, [], "1 columns; from 2 to 300 are needed."),
        ({"a": A, "b": 0 * A + 7.3}, [], "column 'b' is constant; leave it out."),
        ({"a": A, "b": B, "c": 2 * A - B + 1}, [], "column 'c' is a linear combination"),
        ({"a": 1e9 * A, "b": 2e-9 * A}, [], "column 'b' is a linear combination"),
        ({"a": A[:3], "b": B[:3]}, [], "3 rows; at least 4 are needed for 2 columns."),
        ({"a": A, "b": B}, ["--columns", "z"], "has no column 'z'; it has 'a', 'b'."),
        ({"a": A, "b": B}, ["--columns", "a", "--columns", "a"], "'a' is named twice"),
        ({"a": A, "b": 1e200 * B}, [], "at most 1e100 is read."),
        ({"a": A, "b": B}, ["--edges", "no/e.csv"], "there is no folder no."),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(tmp_path, monkeypatch, columns, more, told):
    monkeypatch.chdir(tmp_path)
    table("data.csv", columns)
    found = run("dag", "data.csv", *more)
    assert found.exit_code == 2
    assert told in found.output
    assert found.output.startswith("bilevel dag: ")
    assert not (tmp_path / "bilevel-dag.html").exists()


def test_a_field_that_is_no_number_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("a,b\n1,2\n3,high\n")
    told = run("dag", "data.csv").output
    assert "data.csv, line 3, column 'b': 'high'; a finite number is needed." in told


def test_columns_of_very_unlike_sizes_are_solved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table("data.csv", {"a": 1e8 * A, "b": 1e-8 * B, "c": 1e-8 * C})
    assert run("dag", "data.csv").exit_code == 0
