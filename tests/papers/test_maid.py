"""MAID: the recorded trajectory, and what it promises to be certain of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import flat, same_bits

import bilevel as bl
from bilevel import lower, oracles, problems
from bilevel.methods import MAID
from bilevel.problem import Batch
from bilevel.problems import Case

FREE = ("quad", "nested", "blocks", "curv", "scalar", "shifted", "minmax", "ridge", "hard")
STEPS = {"ridge": 400, "hard": 160}


def hard(kappa=1e4, n=30) -> Case:
    """Condition 10⁴ below, not convex above, and started far away."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    H = jnp.asarray(Q * np.geomspace(1 / kappa, 1, n) @ Q.T)
    B, target = jnp.asarray(0.3 * rng.normal(size=(n, 5))), jnp.asarray(rng.normal(size=n))

    def solution(x):
        return B @ x + jnp.sin(x).sum()

    def g(x, y, batch):
        e = y - solution(x)
        return e @ H @ e / 2

    def f(x, y, batch):
        return jnp.sum((y - target) ** 2) / 2 - jnp.cos(y).sum() + x @ x / 20

    x0, y0 = jnp.full(5, 30.0), jnp.full(n, -1000.0)
    return Case("hard", bl.Problem(f, g), x0, y0, solution, lower_mu=1 / kappa, lower_L=1.0)


def case_of(name: str, dtype=None) -> Case:
    return hard() if name == "hard" else problems.ALL[name](dtype)


class Path(NamedTuple):
    """A run, with the exact answers beside it."""

    state: object
    info: dict
    values: np.ndarray  # l at x_0, ..., x_K
    norms: np.ndarray  # ‖∇l‖ there
    errors: np.ndarray  # ‖z_k − ∇l(x_k)‖


def path(method: MAID, case: Case, steps: int) -> Path:
    def body(state, _):
        value, gradient = case.value(state.x), case.gradient(state.x)
        new, info = method.step(case.problem, state, Batch())
        error = bl.trees.norm(bl.trees.sub(new.z, gradient))
        return new, (info, value, bl.trees.norm(gradient), error)

    @jax.jit
    def run(state):
        end, (info, values, norms, errors) = jax.lax.scan(body, state, length=steps)
        last = case.value(end.x), bl.trees.norm(case.gradient(end.x))
        return end, info, jnp.append(values, last[0]), jnp.append(norms, last[1]), errors

    start = method.init(case.problem, case.x0, case.y0, key=jax.random.key(0))
    end, info, *rest = run(start)
    return Path(end, jax.tree.map(np.asarray, info), *map(np.asarray, rest))


def recorded(case: Case) -> MAID:
    """The parametrisation of the table: everything known, everything as published."""
    R, C = case.problem.upper.args[0].R, case.problem.lower.args[0].C
    return MAID(
        step_size=0.05,
        slack=0.01,
        decrease=None,
        lower_solver=lower.Descend(2 / (case.lower_mu + case.lower_L)),
        warm_adjoint=False,
        mu=case.lower_mu,
        cross=jnp.linalg.norm(C, 2),
        upper_L=2.0,
        upper_cross=jnp.linalg.norm(R, 2),
        hessian_lipschitz=0.0,
        cross_lipschitz=0.0,
        convex_upper=True,
        as_published=True,
    )


TABLE = {  # steps: ‖∇l‖, eps, alpha, lower and CG steps so far
    1: (8.79, 1.25e-1, 0.0556, 20, 3),
    10: (4.22e-1, 1.46e-2, 0.143, 145, 44),
    20: (1.29e-1, 1.06e-3, 0.411, 384, 95),
    40: (4.36e-3, 2.80e-6, 0.211, 1568, 200),
    60: (1.82e-4, 7.42e-9, 0.109, 3568, 305),
}


def test_recorded_trajectory():
    case = problems.quad()
    run = path(recorded(case), case, 100)
    for k, (norm, eps, step_size, lower_steps, cg_steps) in TABLE.items():
        np.testing.assert_allclose(run.norms[k], norm, rtol=5e-3)
        np.testing.assert_allclose(run.info["eps"][k - 1], eps, rtol=5e-3)
        np.testing.assert_allclose(run.info["step_size"][k - 1], step_size, rtol=5e-3)
        assert run.info["lower_steps"][k - 1] == lower_steps
        assert run.info["cg_steps"][k - 1] == cg_steps
    # Rounding decides from here on: 1.0e-6, 5e-14, .23, 9918, 515.
    np.testing.assert_allclose(run.norms[100], 1.0e-6, rtol=0.2)
    np.testing.assert_allclose(run.info["lower_steps"][99], 9918, rtol=0.01)
    np.testing.assert_allclose(run.info["cg_steps"][99], 515, rtol=0.01)
    assert run.info["accepted"].all()
    assert (np.diff(run.values) < 0).all()
    assert (run.errors <= run.info["bound"] + 1e-14).all()


@pytest.mark.slow(unless=lambda name: name == "quad")
@pytest.mark.parametrize("name", FREE)
def test_untuned_descent_is_certain_and_reaches_the_solution(name):
    case = case_of(name)
    run = path(MAID(), case, STEPS.get(name, 60))
    accepted = run.info["accepted"] > 0
    assert accepted[0]
    assert (np.diff(run.values)[accepted] < 0).all()
    assert (np.diff(run.values)[~accepted] == 0).all()
    assert (run.errors <= run.info["bound"] + 1e-13 * run.norms[:-1])[accepted].all()
    assert run.norms[-1] <= 1e-5 * (1 + run.norms[0])
    assert all(np.isfinite(leaf).all() for leaf in run.info.values())


@pytest.mark.slow(unless=lambda name: name == "quad")
@pytest.mark.parametrize("name", ["quad", "curv"])
def test_single_precision_to_its_accuracy(name):
    case = case_of(name, jnp.float32)
    run = path(MAID(), case, 40)
    accepted = run.info["accepted"] > 0
    noise = 4 * np.finfo(np.float32).eps * (1 + np.abs(run.values[:-1]))
    assert (np.diff(run.values)[accepted] < noise[accepted]).all()
    assert run.norms[-1] < 1e-2
    assert run.info["exhausted"][-1] == 1
    assert {leaf.dtype for leaf in (run.values, *run.info.values())} <= {
        np.dtype(np.float32),
        np.dtype(np.int32),
    }


def test_exhausted_accuracy_is_told_and_final():
    case = problems.quad()
    method = MAID()
    run = path(method, case, 60)
    exhausted = run.info["exhausted"]
    assert exhausted[0] == 0
    assert exhausted[-1] == 1
    again, info = jax.jit(lambda s: method.step(case.problem, s, Batch()))(run.state)
    assert same_bits(again._replace(k=run.state.k), run.state)
    assert info["accepted"] == 0
    assert info["exhausted"] == 1


@pytest.mark.slow
def test_least_accuracy_is_kept():
    case = problems.quad()
    run = path(MAID(min_eps=1e-4), case, 60)
    assert run.info["exhausted"][-1] == 1
    assert run.info["eps"].min() > 1e-5
    assert run.norms[-1] < 0.1


@pytest.mark.slow(unless=lambda x0: x0 == [3.0, -3.0])
@pytest.mark.parametrize("x0", [[0.5, -0.5], [3.0, -3.0]])
def test_projected_steps_stay_in_a_box_and_reach_its_solution(x0):
    case = problems.boxed()
    method = MAID()
    state = method.init(case.problem, jnp.array(x0), case.y0)
    state, info = bl.run(case.problem, method, state, steps=40)
    np.testing.assert_allclose(state.x, case.x_star, atol=1e-6)
    assert (jnp.abs(state.x) <= 0.5).all()
    assert info["hypergrad_norm"][-1] < 1e-5  # the projected one
    assert (np.diff(info["upper"])[1:] <= 1e-9).all()


@pytest.mark.slow
def test_units_of_the_losses_do_not_matter():
    """Losses times 10^±8, and an optimum a million away, in one map."""
    case = problems.curv()

    def last(f_scale, g_scale, shift):
        def f(x, y, batch):
            return f_scale * case.problem.upper(x - shift, y, batch)

        def g(x, y, batch):
            return g_scale * case.problem.lower(x - shift, y, batch)

        problem, method = bl.Problem(f, g), MAID()
        state, _ = bl.run(problem, method, method.init(problem, case.x0, case.y0), steps=60)
        return state.x - shift

    settings = jnp.array([[1e8, 1, 0], [1e-8, 1, 0], [1, 1e8, 0], [1, 1e-8, 0], [1, 1, 1e3]])
    xs = jax.jit(jax.vmap(last))(*settings.T)
    np.testing.assert_allclose(xs, jnp.stack(5 * [case.x_star]), atol=1e-5)


@pytest.mark.slow
def test_published_rules_work_without_constants():
    case = problems.curv()
    run = path(MAID(as_published=True, slack=0.1, decrease=None), case, 60)
    accepted = run.info["accepted"] > 0
    assert (np.diff(run.values)[accepted] < 0).all()
    assert (run.errors <= run.info["bound"])[accepted].all()
    assert run.norms[-1] < 1e-3 * run.norms[0]


@pytest.mark.slow
def test_another_lower_solver():
    case = problems.curv()
    run = path(MAID(lower_solver=lower.ToTolerance()), case, 40)
    assert run.norms[-1] < 1e-5
    with pytest.raises(TypeError, match="stops at a tolerance"):
        MAID(lower_solver=lower.Gradient(0.1))


def test_theory_takes_constants_from_a_probe():
    case = problems.quad()
    constants = bl.certificates.probe(case.problem, case.x0, case.y0)
    method = MAID.theory(constants)
    np.testing.assert_allclose(method.mu, case.lower_mu, rtol=1e-6)
    run = path(method, case, 40)
    assert run.norms[-1] < 1e-6


def test_counters_agree_with_the_oracles():
    case = problems.quad()
    method = recorded(case)
    state = method.init(case.problem, case.x0, case.y0)
    with jax.disable_jit(), oracles.counting() as calls:
        _, info = method.step(case.problem, state, Batch())
    rounds, trials = 1, 1  # both succeed at once
    assert calls["upper_grad"] == rounds + trials
    assert calls["lower_grad"] == info["lower_steps"] + 2 * rounds + trials
    assert calls["hvp"] == info["cg_steps"] + rounds
    assert calls["cross"] == rounds


def test_front_door():
    case = problems.curv()
    result = bl.solve(case.problem, MAID(), case.x0, case.y0, steps=100, progress=False)
    assert result.status.ok
    assert result.certificate.stationarity < 1e-6
    np.testing.assert_allclose(flat(result.x), flat(case.x_star), atol=1e-6)


def test_a_run_that_rounding_ends_says_so_and_stops():
    """On `quad` in single precision: not finished, and not the steps that were asked for."""
    case = problems.quad(jnp.float32)
    result = bl.solve(
        case.problem, MAID(), case.x0, case.y0, steps=400, log_every=20, progress=False
    )
    assert result.status.outcome is bl.Outcome.STALLED
    assert not result.status.ok
    assert "enable x64" in str(result.status)
    assert result.stats.steps < 400
    assert result.stats.compile_seconds < result.stats.seconds
    np.testing.assert_allclose(flat(result.x), flat(case.x_star), atol=1e-3)


# --- the lower solvers it brings ---------------------------------------------------------------


def steep(x, y, batch):
    return jnp.sum(jnp.sqrt(1 + (y - x) ** 2)) + 1e-4 * jnp.sum(y**2)


@pytest.mark.parametrize("start", [0.0, 1e4])
def test_newton_comes_home_from_afar(start):
    problem = bl.Problem(lambda x, y, batch: y.sum(), steep)
    x, y0 = jnp.array([1.0, -2.0, 30.0]), jnp.full(3, start)
    found = jax.jit(lambda: lower.NewtonCG(tol=1e-10).solve(problem, x, y0))()
    assert found.residual <= 1e-10
    assert found.steps < 200
    np.testing.assert_allclose(jnp.linalg.norm(jax.grad(steep, 1)(x, found.y, None)), 0, atol=1e-10)


@pytest.mark.parametrize("solver", [lower.NewtonCG(tol=0.0), lower.Descend(0.7, tol=0.0)])
def test_rounding_ends_a_lower_solve(solver):
    case = problems.quad()
    found = jax.jit(lambda: solver.solve(case.problem, case.x0, case.y0))()
    assert found.steps < 1000
    assert 0 <= found.residual < 1e-14
    np.testing.assert_allclose(found.y, case.y_star(case.x0), atol=1e-13)


def test_newton_takes_a_quadratic_in_one_run_of_conjugate_gradients():
    case = problems.quad()
    found = lower.NewtonCG(tol=1e-10, forcing=0.0).solve(case.problem, case.x0, case.y0)
    assert found.steps == 3 + 1
    assert found.residual <= 1e-10
