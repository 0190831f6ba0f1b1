"""Linear and quadratic problems are recognised from their code, and solved with a proof."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.driver import FollowerCertificate
from bilevel.problem import Batch
from bilevel.selection import structure

A = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda z: 3.0, 0),
        (lambda z: jnp.sum(A @ z) - z[0] / 2 + jnp.exp(2.0), 1),
        (lambda z: jnp.mean((A @ z) ** 2) + z[0] * z[1] + jnp.square(z[2]), 2),
        (lambda z: jax.jit(lambda a: a @ a)(z[:2]), 2),
        (lambda z: jnp.where(np.array([True, False, True]), z, 2 * z).sum(), 1),
        (lambda z: jnp.zeros(3).at[np.array([0, 2])].add(z[:2]) @ z, 2),
        (lambda z: jnp.sum(z**3), 3),
        (lambda z: (z @ z) * z[0], 3),
        (lambda z: jnp.sum(jnp.abs(z)), 3),
        (lambda z: 1 / z[0], 3),
        (lambda z: z[0].astype(int).astype(float), 3),
        (lambda z: jax.lax.stop_gradient(z[0]), 3),
        (lambda z: jnp.where(z > 0, z, 0.0).sum(), 3),
        (lambda z: jnp.max(z), 3),
        (lambda z: jax.lax.fori_loop(0, 3, lambda _, a: a + z[0], 0.0), 3),
    ],
    ids=range(15),
)
def test_degrees(fn, expected):
    assert structure.degree(fn, jnp.ones(3)) == expected


def lines(n: int):
    """`y = max(s_0 x + t_0, s_1 x + t_1)` for each of n pairs, and what the leader pays for both.

    Half of the leader's prices on y are negative: about 2^(n/2) local minima, and a sum of
    enumerations for the best.
    """
    rng = np.random.default_rng(0)
    slope, at, p = rng.normal(size=(2, n)), rng.normal(size=(2, n)) / 2, rng.normal(size=n)
    q = np.where(np.arange(n) % 2, -1.0, 1.0) * rng.uniform(0.5, 1.5, n)
    kink = np.clip((at[1] - at[0]) / (slope[0] - slope[1]), 0, 1)
    ends = np.stack([np.zeros(n), kink, np.ones(n)])
    answers = np.max(slope[:, None] * ends + at[:, None], axis=0)
    best = np.sum(np.min(p * ends + q * answers, axis=0))
    problem = bl.Problem(
        lambda x, y, b: p @ x + q @ y["y"] + 1.0,
        lambda x, y, b: jnp.sum(y["y"]),
        upper_set=bl.sets.Box(0.0, 1.0),
        lower_set=bl.sets.Polyhedron(
            -np.vstack([np.eye(n), np.eye(n)]), lambda x: -(slope * x[None] + at).ravel()
        ),
    )
    return problem, best + 1.0


def test_a_linear_problem_beyond_the_global_search_is_solved_with_a_proof():
    pytest.importorskip("highspy")
    problem, best = lines(21)
    x0, y0 = jnp.full(21, 0.5), {"y": jnp.full(21, 5.0)}
    result = bl.solve(problem, x0=x0, y0=y0)
    assert "Chose HiGHS" in result.status.advice
    assert result.status.outcome is bl.Outcome.CONVERGED
    proof = result.certificate
    assert isinstance(proof, FollowerCertificate)
    assert proof.ok
    assert proof.bound is not None
    assert proof.upper == pytest.approx(best, abs=1e-6)
    assert best - 1e-5 <= proof.bound <= best + 1e-6
    assert "proved" in proof.summary()
    assert float(problem.upper(result.x, result.y, None)) == pytest.approx(best, abs=1e-5)


def small(upper, lower, **sets):
    return structure.as_program(
        bl.Problem(upper, lower, **sets), jnp.zeros(2), jnp.zeros(2), Batch()
    )


def test_coefficients_are_those_of_the_problem():
    program = small(
        lambda x, y, b: x[0] ** 2 - x @ y + y[0],
        lambda x, y, b: jnp.sum(jnp.array([1.0, 2.0]) * y) + x @ y + jnp.sum(jnp.exp(0.0) * x**2),
        upper_set=bl.sets.Box(0.0, np.inf),
        lower_set=(bl.sets.Box(0.0, 4.0), bl.sets.Affine(np.ones((1, 2)), np.ones(1))),
    )
    assert program is not None
    assert program.share == -1
    assert program.lower.tolist() == [0, 0, 0, 0]
    assert program.upper.tolist() == [np.inf, np.inf, 4, 4]
    assert program.rows.tolist() == [[0, 0, 1, 1]]
    assert (program.row_lower, program.row_upper) == (1, 1)
    z = np.array([0.5, 2.0, 0.25, 0.75])
    assert program.value(z) == pytest.approx(0.25 - (0.125 + 1.5) + 0.25)
    assert program.follower_value(z) == pytest.approx(0.25 + 1.5 + 0.125 + 1.5)


@pytest.mark.parametrize(
    ("upper", "lower", "sets"),
    [
        (lambda x, y, b: -(x @ x), lambda x, y, b: y @ y, {}),
        (lambda x, y, b: x @ x, lambda x, y, b: -(y @ y), {}),
        (lambda x, y, b: x @ y, lambda x, y, b: y @ y - x @ y, {}),
        (lambda x, y, b: x @ x, lambda x, y, b: y @ y, {"lower_set": bl.sets.Ball(1.0)}),
        (lambda x, y, b: x @ x, lambda x, y, b: x[0] * y @ y, {}),
    ],
    ids=["concave leader", "concave follower", "products of both", "a ball", "a cubic"],
)
def test_what_is_no_such_program(upper, lower, sets):
    assert small(upper, lower, **sets) is None
