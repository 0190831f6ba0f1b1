"""Bilevel programs are solved to a proven gap, and a guessed big-M is never believed."""

import itertools

import mip_cases
import numpy as np
import pytest
from scipy.optimize import linprog

from bilevel import mip

pytest.importorskip("highspy")


def slow(first, last):
    return [pytest.param(seed, marks=pytest.mark.slow) for seed in range(first, last)]


def textbook(**changes):
    """The six-row program of Bard's kind whose best value is −29.2, at x = (0, 0.9)."""
    given = {
        "cost": [-8, -4, 4, -40, -4, 0, 0, 0],
        "rows": np.array(
            [[0, 0, -1, 1, 1, 1, 0, 0], [2, 0, -1, 2, -0.5, 0, 1, 0], [0, 2, 2, -1, -0.5, 0, 0, 1]]
        ),
        "row_lower": np.ones(3),
        "row_upper": np.ones(3),
        "follower": np.arange(8) >= 2,
        "follower_rows": np.ones(3, bool),
        "follower_cost": [0, 0, 1, 1, 2, 0, 0, 0],
    }
    return mip.Program(**given | changes)


def test_the_textbook_program():
    answer = mip.solve(textbook())
    assert answer.ending is mip.Ending.OPTIMAL
    assert answer.value == pytest.approx(-29.2, abs=1e-6)
    assert answer.bound == pytest.approx(-29.2, abs=1e-6)
    np.testing.assert_allclose(answer.z, [0, 0.9, 0, 0.6, 0.4, 0, 0, 0], atol=1e-6)
    assert answer.follower_value == pytest.approx(answer.follower_best, abs=1e-6)


@pytest.mark.parametrize(("big_m", "fails"), [(1000.0, False), (0.5, True), (1e-3, True)])
def test_a_guessed_big_m_is_not_believed(big_m, fails):
    answer = mip.solve(textbook(), big_m=big_m)
    assert answer.value == pytest.approx(-29.2, abs=1e-6)
    assert answer.big_m_fails is fails


@pytest.mark.parametrize("make", [mip_cases.interdiction, mip_cases.tolls])
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 50))]
)
def test_against_enumeration(make, seed):
    program, best = make(seed)
    answer = mip.solve(program)
    assert answer.ending is mip.Ending.OPTIMAL
    assert answer.value == pytest.approx(best, abs=1e-6)
    assert answer.bound == pytest.approx(best, abs=1e-5)


def test_the_revenue_of_one_toll_road():
    # Roads of cost 2 + T and 5: the toll is 3, and the follower takes the road that pays.
    products = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    program = mip.Program(
        cost=np.zeros(3),
        share=-1.0,
        rows=[[0, 1, 1]],
        row_lower=[1],
        row_upper=[1],
        upper=[10, np.inf, np.inf],
        follower=[False, True, True],
        follower_rows=[True],
        follower_cost=[0, 2, 5],
        follower_hessian=products,
    )
    answer = mip.solve(program)
    np.testing.assert_allclose(answer.z, [3, 1, 0], atol=1e-6)
    assert answer.bound == pytest.approx(-3, abs=1e-6)


def quadratic(seed, whole=False, curved=False):
    """Two leader columns, two of the follower with a strictly convex loss, a row for each."""
    rng = np.random.default_rng(seed)
    root, cross = rng.normal(size=(2, 2)), rng.normal(size=(2, 2))
    hessian = np.block([[np.zeros((2, 2)), cross.T], [cross, root @ root.T + np.eye(2) / 2]])
    upper = rng.normal(size=(4, 4))
    return mip.Program(
        cost=rng.normal(size=4),
        rows=rng.normal(size=(2, 4)),
        row_upper=[2, 1.5],
        upper=[3, 3, 4, 4],
        integer=[whole, whole, False, False],
        follower=[False, False, True, True],
        follower_rows=[False, True],
        follower_cost=np.r_[0, 0, rng.normal(size=2)],
        follower_hessian=hessian,
        hessian=upper @ upper.T if curved else None,
    )


def by_active_sets(p):
    """The best value over every choice of the follower's sides that hold with equality."""
    y, eye, H = [2, 3], np.eye(4), p.yy + p.yx
    sides = [(p.rows[1], p.row_upper[1])]
    sides += [(eye[j], p.upper[j]) for j in y] + [(-eye[j], 0.0) for j in y]
    ahead = np.array([row[y] for row, _ in sides]).T
    best = np.inf
    for active in itertools.product((False, True), repeat=len(sides)):
        held = [side for side, on in zip(sides, active, strict=True) if on]
        equal = [np.r_[row, np.zeros(5)] for row, _ in held]
        found = linprog(
            np.r_[p.cost, np.zeros(5)],
            np.pad(np.vstack([p.rows, *(row for row, _ in sides)]), ((0, 0), (0, 5))),
            [*p.row_upper, *(side for _, side in sides)],
            np.vstack([np.hstack([H[y], ahead]), *equal]),
            [
                *-p.follower_cost[y],
                *(side for (_, side), on in zip(sides, active, strict=True) if on),
            ],
            [(0, u) for u in p.upper] + [(0, None if on else 0) for on in active],
        )
        best = min(best, found.fun if found.status == 0 else np.inf)
    return best


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 20))]
)
def test_a_quadratic_follower(seed):
    program = quadratic(seed)
    answer, best = mip.solve(program), by_active_sets(program)
    assert answer.value == pytest.approx(best, abs=1e-5)
    assert answer.bound == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(
    "seed", [3, *(pytest.param(s, marks=pytest.mark.slow) for s in range(4, 12))]
)
def test_whole_leaders_and_quadratic_losses_of_both(seed):
    program = quadratic(seed, whole=True, curved=True)
    answer = mip.solve(program)
    values = []
    for x in itertools.product(range(4), repeat=2):
        fixed = np.array([*x, 0, 0], float)
        best = mip.follower_best(program, fixed)
        if best.z is not None:
            z = np.r_[fixed[:2], best.z[2:]]
            values += [program.value(z)] if program.violation(z) < 1e-6 else []
    assert answer.value == pytest.approx(min(values, default=np.inf), abs=1e-3)
    assert answer.gap <= 1e-6


def test_no_point_is_no_answer():
    answer = mip.solve(textbook(lower=[2, 0, 0, 0, 0, 0, 0, 0], upper=[3, 9, 9, 9, 0, 9, 0, 9]))
    assert (answer.ending, answer.z) == (mip.Ending.INFEASIBLE, None)


def test_few_nodes_leave_a_gap_that_is_told():
    program, best = mip_cases.tolls(1)
    answer = mip.solve(program, nodes=1)
    assert answer.ending is mip.Ending.LIMIT
    assert answer.bound < best - 1e-3
    assert answer.value >= best - 1e-6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"follower": np.zeros(8, bool)}, "no column is the follower's"),
        ({"row_upper": np.ones(2)}, r"row_upper has shape \(2,\); \(3,\) is needed"),
        ({"cost": [np.nan] * 8}, "cost holds NaN"),
        ({"hessian": -np.eye(8)}, "hessian has the eigenvalue -1; a convex loss is needed"),
        ({"share": 1.0}, "share is for a follower whose loss is linear"),
    ],
)
def test_wrong_programs_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        textbook(**changes)


def test_an_integer_follower_needs_whole_leaders_that_it_sees():
    with pytest.raises(ValueError, match="column x0 of the leader stands in a row of a follower"):
        mip.solve(textbook(integer=np.arange(8) >= 2))
