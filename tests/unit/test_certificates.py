import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import Problem, hypergrad, linear, lower, problems, sets, trees
from bilevel import certificates as ct
from bilevel.certificates import Convexity, Gap, Verdict
from bilevel.certificates.certify import WORDS

QUAD = problems.quad()
GRAD_X0 = jnp.array([10.83868992524, -16.897800719908])
H_EIGENVALUES = (0.408031275459, 0.881388552219, 2.210580172322)


def exact(problem, steps=200):
    return lower.Accelerated(H_EIGENVALUES[-1], H_EIGENVALUES[0], steps=steps)


def with_(problem, **changes):
    return Problem(problem.upper, problem.lower, **changes)


def certified(**changes):
    problem = with_(QUAD.problem, **changes)
    return jax.jit(functools.partial(ct.certify, solver=exact(problem)))(problem, QUAD.x0, QUAD.y0)


class TestMeasures:
    def test_hypergradient_norm_is_the_closed_form(self):
        norm = ct.hypergradient_norm(QUAD.problem, QUAD.x0, QUAD.y0)
        assert jnp.allclose(norm, jnp.linalg.norm(GRAD_X0), rtol=1e-7)

    def test_residual_is_the_gradient_norm_without_a_set(self):
        residual = ct.projected_gradient_residual(QUAD.problem, QUAD.x0, GRAD_X0, 0.1)
        assert residual == jnp.linalg.norm(GRAD_X0)

    def test_residual_with_a_box(self):
        boxed = with_(QUAD.problem, upper_set=sets.Box(-1.0, 1.0))
        # At (1, −1) the step along (10.8, −16.9) leaves x_1 at 1 − 0.1·10.8 and x_2 at 1 (clipped).
        residual = ct.projected_gradient_residual(boxed, QUAD.x0, GRAD_X0, 0.1)
        assert jnp.allclose(residual, jnp.hypot(GRAD_X0[0], 16.897800719908), rtol=1e-9)
        inward = ct.projected_gradient_residual(boxed, QUAD.x0, -GRAD_X0)
        assert inward == 0  # both components point out of the box

    def test_tracking_error(self):
        error = ct.tracking_error(QUAD.problem, QUAD.x0, QUAD.y0, solver=exact(QUAD.problem))
        assert jnp.allclose(error, jnp.linalg.norm(QUAD.y_star(QUAD.x0)), rtol=1e-12)

    def test_lower_and_adjoint_residual(self):
        y = QUAD.y_star(QUAD.x0)
        v = hypergrad.implicit(QUAD.problem, QUAD.x0, y, linear=linear.Dense()).v
        assert ct.lower_residual(QUAD.problem, QUAD.x0, y) < 1e-13
        assert ct.adjoint_residual(QUAD.problem, QUAD.x0, y, v) < 1e-13
        off = ct.adjoint_residual(QUAD.problem, QUAD.x0, y, v + 1)
        H = jnp.array([[2, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 0.5]])
        assert jnp.allclose(off, jnp.linalg.norm(H @ jnp.ones(3)))


class TestCertify:
    def test_numbers_on_quad(self):
        found = certified()
        assert jnp.allclose(found.stationarity, jnp.linalg.norm(GRAD_X0), rtol=1e-9)
        assert jnp.allclose(found.value, 17.583370515407, rtol=1e-10)
        assert jnp.allclose(found.tracking_error, jnp.linalg.norm(QUAD.y_star(QUAD.x0)))
        assert found.solved_lower_residual < 1e-12
        assert found.solved_adjoint_residual < 1e-12
        assert found.gaps == 0
        assert "Not" not in found.summary()
        assert str(found) == found.summary()

    def test_solution_is_stationary(self):
        y = QUAD.y_star(QUAD.x_star)
        v = hypergrad.implicit(QUAD.problem, QUAD.x_star, y, linear=linear.Dense()).v
        found = ct.certify(QUAD.problem, QUAD.x_star, y, v=v)
        signs = {"value": 0, "gaps": 0, "sc_margin": 0, "lower_curvature": 0}
        assert max(float(number) for number in found._replace(**signs)) < 1e-7
        assert found.sc_margin == jnp.inf  # no inequality is near a kink
        assert jnp.allclose(found.lower_curvature, H_EIGENVALUES[0])

    def test_a_given_adjoint_is_measured_at_the_given_y(self):
        v = jnp.zeros(3)
        found = ct.certify(QUAD.problem, QUAD.x0, QUAD.y0, v=v, solver=exact(QUAD.problem))
        f_y = jax.grad(QUAD.problem.upper, argnums=1)(QUAD.x0, QUAD.y0, None)
        assert jnp.allclose(found.adjoint_residual, jnp.linalg.norm(f_y))
        assert found.solved_adjoint_residual < 1e-12

    def test_closed_form_is_used(self):
        found = certified(hypergradient=lambda x, y, batch: 3 * x)
        assert jnp.allclose(found.stationarity, 3 * jnp.sqrt(2.0))
        assert jnp.isnan(found.solved_adjoint_residual)
        assert found.gaps == 0

    def test_a_large_constrained_y_gives_no_stationarity_but_lower_measures(self):
        n = 201
        large = Problem(
            lambda x, y, batch: jnp.sum(y) + x**2,
            lambda x, y, batch: jnp.sum((y - x) ** 2) / 2,
            lower_set=sets.Box(-1.0, 1.0),
        )
        found = ct.certify(large, jnp.array(0.5), jnp.zeros(n))
        assert jnp.isnan(found.stationarity)
        assert jnp.isnan(found.adjoint_residual)
        assert jnp.isnan(found.kkt_residual)
        assert jnp.isnan(found.lower_curvature)
        assert found.solved_lower_residual < 1e-8
        assert Gap(int(found.gaps)) == Gap.LOWER_SET
        assert "Not certified: y is constrained and too large" in str(found)

    def test_lower_step_gives_nothing_without_a_closed_form(self):
        found = certified(lower_step=lambda x, y, batch: y)
        assert all(
            jnp.isnan(number)
            for number in found._replace(sc_margin=jnp.nan, violation=jnp.nan)[:-1]
        )
        assert "lower_step" in str(found)

    def test_lower_step_with_a_closed_form_is_measured_at_the_given_y(self):
        found = certified(
            lower_step=lambda x, y, batch: y, hypergradient=lambda x, y, batch: x + y[:2]
        )
        assert jnp.allclose(found.stationarity, jnp.sqrt(2.0))
        assert jnp.isnan(found.tracking_error)
        assert "at the given y" in str(found)

    def test_more_constraints_on_the_solution_than_fit_are_not_certified(self):
        found = certified(upper_set=sets.Coupled(lambda x, y: x[0] + y[0] * jnp.ones(201)))
        assert jnp.isnan(found.stationarity)
        assert jnp.isfinite(found.tracking_error)
        assert "Not certified: the upper set has no fixed projection" in str(found)

    @pytest.mark.parametrize("round", [False, True], ids=["polyhedron", "with_a_ball"])
    def test_a_fixed_set_is_measured_with_its_projection_or_without(self, round):
        """`min ‖x − (1, 0)‖²/2` under `x_1 + x_2 >= 2` alone, and in a ball that is wide enough."""
        half = sets.Polyhedron(-jnp.ones((1, 2)), jnp.array([-2.0]))
        where = sets.Intersection((half, sets.Ball(9.0))) if round else half
        problem = Problem(
            lambda x, y, _: jnp.sum((x - jnp.array([1.0, 0.0])) ** 2) / 2,
            lambda x, y, _: jnp.sum((y - 2 * x) ** 2) / 2,
            upper_set=where,
        )
        assert where.projectable is not round
        for x, expected in (((1.5, 0.5), 0.0), ((2.0, 0.0), 0.5 * 2**0.5)):
            found = ct.certify(problem, jnp.array(x), jnp.zeros(2)).stationarity
            np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_a_constraint_on_the_solution_is_measured_by_its_multipliers(self):
        """`min ‖x − (1, 0)‖²/2` under `y_1 + y_2 >= 4`, with y = 2x."""
        problem = Problem(
            lambda x, y, _: jnp.sum((x - jnp.array([1.0, 0.0])) ** 2) / 2,
            lambda x, y, _: jnp.sum((y - 2 * x) ** 2) / 2,
            upper_set=sets.Coupled(lambda x, y: 4 - jnp.sum(y)),
        )
        expected = {
            (1.5, 0.5): 0.0,  # the solution, with a multiplier of 1/2
            (2.0, 0.0): 0.5 * 2**0.5,  # on the boundary: what is left along it
            (3.0, 0.0): (4 - 4**2 / 12) ** 0.5,  # inside: a multiplier costs itself times −h = 2
            (1.0, 0.0): 2.0,  # the free minimiser, outside by h = 2
        }
        found = jax.vmap(lambda x: ct.certify(problem, x, jnp.zeros(2)).stationarity)
        told = found(jnp.array(list(expected)))
        np.testing.assert_allclose(told, list(expected.values()), atol=1e-9)

    def test_a_coupled_lower_set_needs_a_solver_for_programs(self, monkeypatch):
        monkeypatch.setattr(ct.measures, "_has_programs", lambda: False)
        coupled = with_(QUAD.problem, lower_set=sets.Coupled(lambda x, y: x[0] + y[0]))
        found = ct.certify(coupled, QUAD.x0, QUAD.y0)
        assert jnp.isnan(found.stationarity)
        assert jnp.isnan(found.tracking_error)
        assert jnp.isfinite(found.kkt_residual)
        assert "Not certified: the lower set has no projection" in str(found)
        assert "The lower KKT conditions hold to" in str(found)

    def test_a_short_solve_is_not_trusted(self):
        solver = lower.ToTolerance(max_steps=2)
        found = ct.certify(QUAD.problem, QUAD.x0, QUAD.y0, solver=solver)
        assert "Not to be trusted: the lower solve stopped" in str(found)

    def test_nan_is_not_trusted(self):
        bad = Problem(QUAD.problem.upper, lambda x, y, batch: jnp.sum(y**2) * jnp.log(x[1]))
        told = str(ct.certify(bad, QUAD.x0, QUAD.y0))
        assert "not finite" in told
        assert followed(told, bad)

    def test_the_advice_can_be_followed_as_typed(self):
        solver = lower.ToTolerance(max_steps=2)
        told = str(ct.certify(QUAD.problem, QUAD.x0, QUAD.y0, solver=solver))
        (better,) = followed(told, QUAD.problem)
        assert "Not to be trusted" not in str(better)
        told = str(ct.certify(QUAD.problem, QUAD.x0, QUAD.y0, linear=linear.CG(1)))
        (better,) = followed(told, QUAD.problem)
        assert "Not to be trusted" not in str(better)
        assert followed(WORDS[Gap.KINK], QUAD.problem)

    def test_trees(self):
        case = problems.nested()
        found = ct.certify(case.problem, case.x0, case.y0)
        assert jnp.allclose(found.stationarity, trees.norm(case.gradient(case.x0)), rtol=1e-6)


CALL = re.compile(r"bl\.[\w.]+\((?:[^()]|\([^()]*\))*\)")


def followed(told, problem):
    """What the calls in a text give, typed as they are."""
    names = {"bl": bl, "problem": problem, "x": QUAD.x0, "y": QUAD.y0, "batch": bl.Batch()}
    return [eval(call, names) for call in CALL.findall(told)]  # the library's own text


class TestCheckHypergradient:
    @pytest.mark.parametrize("factory", [problems.curv, problems.ridge])
    def test_implicit_agrees(self, factory):
        case = factory()
        check = ct.check_hypergradient(case.problem, case.x0, case.y0)
        assert check.verdict is Verdict.AGREES
        assert check.error < 1e-4
        assert str(check).startswith("Agrees")

    def test_differences_are_the_gradient_of_curv(self):
        case = problems.curv()
        check = ct.check_hypergradient(case.problem, case.x0, case.y0)
        expected = np.array([11.766004712709, -12.876659777570])
        assert np.allclose(check.differences, expected, rtol=1e-5)

    @pytest.mark.parametrize(
        ("wrong", "cause"),
        [
            (-GRAD_X0, "opposite sign"),
            (2 * GRAD_X0, "2 times"),
            (GRAD_X0 + 1, "check that it was made at this x"),
        ],
    )
    def test_wrong_trees_are_caught(self, wrong, cause):
        check = ct.check_hypergradient(QUAD.problem, QUAD.x0, QUAD.y0, estimate=wrong)
        assert check.verdict is Verdict.DIFFERS
        assert cause in str(check)

    def test_wrong_functions_are_caught(self):
        def implicit_term(sign):
            def estimate(problem, x, y, batch):
                right = hypergrad.implicit(problem, x, y, batch).grad
                direct = jax.grad(problem.upper)(x, y, batch.upper)
                return hypergrad.HyperGrad(0.0, direct + sign * (right - direct))

            return estimate

        check = functools.partial(ct.check_hypergradient, QUAD.problem, QUAD.x0, QUAD.y0)
        assert "∇_x f alone" in str(check(estimate=implicit_term(0)))
        assert "implicit term has the opposite sign" in str(check(estimate=implicit_term(-1)))
        assert check(estimate=implicit_term(1)).verdict is Verdict.AGREES

    def test_random_directions(self):
        settings = {"directions": 3, "key": jax.random.key(1)}
        right = ct.check_hypergradient(QUAD.problem, QUAD.x0, QUAD.y0, estimate=GRAD_X0, **settings)
        assert right.verdict is Verdict.AGREES
        assert right.differences.shape == (3,)

    def test_declared_closed_form_is_what_is_checked(self):
        problem = with_(QUAD.problem, hypergradient=lambda x, y, batch: x)
        check = ct.check_hypergradient(problem, QUAD.x0, QUAD.y0)
        assert check.verdict is Verdict.DIFFERS

    def test_active_lower_constraints(self):
        box = with_(QUAD.problem, lower_set=sets.Box(-1.0, 1.0))
        check = functools.partial(ct.check_hypergradient, box, QUAD.x0, QUAD.y0)
        assert check().verdict is Verdict.AGREES  # through the active set
        blind = check(estimate=hypergrad.implicit)
        assert blind.verdict is Verdict.DIFFERS
        assert "active" in str(blind)

    def test_float32_decides_what_it_can(self):
        case = problems.quad(jnp.float32)
        settings = {"solver": exact(case.problem, steps=60)}
        right, wrong = (
            ct.check_hypergradient(
                case.problem, case.x0, case.y0, estimate=g.astype(jnp.float32), **settings
            )
            for g in (GRAD_X0, -GRAD_X0)
        )
        assert right.verdict is Verdict.AGREES
        assert wrong.verdict is Verdict.DIFFERS

    def test_float32_says_when_it_is_too_coarse(self):
        case = problems.quad(jnp.float32)
        shifted = Problem(lambda x, y, b: case.problem.upper(x, y, b) + 1e5, case.problem.lower)
        check = ct.check_hypergradient(
            shifted,
            case.x0,
            case.y0,
            estimate=(1.05 * GRAD_X0).astype(jnp.float32),
            solver=exact(case.problem, steps=60),
        )
        assert check.verdict is Verdict.UNDECIDED
        assert "float32 is too coarse" in str(check)

    def test_unfinished_lower_solve_is_not_blamed_on_the_estimate(self):
        check = ct.check_hypergradient(
            QUAD.problem,
            QUAD.x0,
            QUAD.y0,
            estimate=GRAD_X0,
            solver=lower.Gradient(0.1, steps=1),
        )
        assert check.verdict is Verdict.UNDECIDED
        assert "lower solves stopped too early" in str(check)

    def test_kink(self):
        kinked = Problem(
            lambda x, y, b: 5 * jax.nn.relu(x[0] - 1) + x[1] + jnp.sum(y), QUAD.problem.lower
        )
        check = ct.check_hypergradient(
            kinked, QUAD.x0, QUAD.y0, solver=exact(QUAD.problem), estimate=jnp.zeros(2)
        )
        assert check.verdict is Verdict.UNDECIDED
        assert "kink" in str(check)

    def test_nan(self):
        bad = Problem(lambda x, y, b: jnp.log(x[1]) * y[0], QUAD.problem.lower)
        check = ct.check_hypergradient(bad, QUAD.x0, QUAD.y0, estimate=GRAD_X0)
        assert check.verdict is Verdict.UNDECIDED
        assert "not finite" in str(check)

    def test_refusals(self):
        with pytest.raises(ValueError, match="not shaped like x"):
            ct.check_hypergradient(QUAD.problem, QUAD.x0, QUAD.y0, estimate=jnp.zeros(3))
        with pytest.raises(ValueError, match="lower_step"):
            ct.check_hypergradient(
                with_(QUAD.problem, lower_step=lambda x, y, b: y), QUAD.x0, QUAD.y0
            )


def diagonal(eigenvalues, dtype=None):
    """A lower Hessian with these eigenvalues, coupled to one number x."""
    d = jnp.asarray(eigenvalues, dtype)
    return (
        Problem(
            lambda x, y, b: 1.5 * jnp.sum(y**2),
            lambda x, y, b: jnp.sum(d * y**2) / 2 - x * jnp.sum(y),
        ),
        jnp.ones((), d.dtype),
        jnp.zeros(d.size, d.dtype),
    )


class TestProbe:
    def test_quad(self):
        found = ct.probe(QUAD.problem, QUAD.x0, QUAD.y0)
        assert np.isclose(found.L, H_EIGENVALUES[-1], rtol=1e-10)
        assert np.isclose(found.mu, H_EIGENVALUES[0], rtol=1e-10)
        assert np.isclose(found.condition, 5.4177, rtol=1e-4)
        assert np.isclose(found.upper_L, 2)
        C = np.array([[1, 0], [-0.5, 1], [0.3, -0.7]])
        assert np.isclose(found.cross, np.linalg.norm(C, 2))
        assert np.isclose(found.penalty, 4 / H_EIGENVALUES[0])
        assert np.isclose(found.y_step, 2 / (H_EIGENVALUES[0] + H_EIGENVALUES[-1]))
        assert found.cg_steps == 3
        assert found.convexity is Convexity.STRONGLY_CONVEX
        assert found.ok
        assert "strongly convex" in str(found)
        numbers = [value for value in found if not isinstance(value, (Convexity, tuple))]
        assert all(type(number) is float for number in numbers)

    def test_trees_of_several_dtypes(self):
        def loss(x, y, batch):
            a, b = y["a"].astype(jnp.float64), y["b"]
            return jnp.sum((a - x) ** 2) + jnp.sum((b - 3 * x) ** 2) * 2

        y = {"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros((2, 2))}
        found = ct.probe(Problem(loss, loss), jnp.ones(()), y)
        assert np.isclose(found.mu, 2)
        assert np.isclose(found.L, 4)
        assert found.ok

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
    def test_lanczos(self, dtype):
        problem, x, y = diagonal(np.linspace(0.5, 50, 300), dtype)
        found = ct.probe(problem, x, y)
        assert np.isclose(found.L, 50, rtol=1e-2)
        assert np.isclose(found.mu, 0.5, rtol=3e-2)
        assert np.isclose(found.cross, np.sqrt(300), rtol=1e-3)
        assert np.isclose(found.upper_L, 3, rtol=1e-3)
        again = ct.probe(problem, x, y)
        assert again == found

    def test_an_unresolved_small_eigenvalue_is_said(self):
        found = ct.probe(*diagonal(np.logspace(-9, 0, 1000)))
        assert found.convexity is Convexity.CONVEX
        assert "not resolved" in str(found)
        assert np.isnan(found.penalty)

    @pytest.mark.parametrize("n", [5, 300])
    def test_nonconvex(self, n):
        found = ct.probe(*diagonal(np.linspace(-1, 4, n)))
        assert found.convexity is Convexity.NONCONVEX
        assert np.isclose(found.mu, -1, rtol=2e-2)
        assert "nonconvex" in str(found)

    def test_flat_directions(self):
        found = ct.probe(*diagonal([0.0, 1.0, 2.0]))
        assert found.convexity is Convexity.CONVEX
        assert "ridge" in found.findings[0]

    @pytest.mark.parametrize(
        ("upper", "lower_loss", "sentence"),
        [
            (lambda x, y: x @ x, None, "upper does not depend on y"),
            (None, lambda x, y: y @ y, "lower does not depend on x"),
            (None, lambda x, y: y @ y + x @ x, "does not couple them"),
            (None, lambda x, y: x @ x, "lower does not depend on y"),
            (lambda x, y: jnp.log(x[1]) + y @ y, None, "Problem.upper is nan"),
            (None, lambda x, y: y @ y / jnp.zeros(()) * x[0], "Problem.lower is nan"),
        ],
    )
    def test_what_is_missing_is_named(self, upper, lower_loss, sentence):
        upper = upper or (lambda x, y: x @ x + y @ y)
        lower_loss = lower_loss or (lambda x, y: jnp.sum((y - x) ** 2))
        problem = Problem(lambda x, y, b: upper(x, y), lambda x, y, b: lower_loss(x, y))
        found = ct.probe(problem, jnp.array([1.0, -1.0]), jnp.zeros(2))
        assert not found.ok
        assert sentence in str(found)

    def test_a_derivative_that_happens_to_vanish_is_not_reported(self):
        problem = Problem(lambda x, y, b: y @ y, lambda x, y, b: jnp.sum(jnp.exp(x) * y**2))
        assert ct.probe(problem, jnp.zeros(2), jnp.zeros(2)).ok  # f_y = 0 and cross = 0 at y = 0

    def test_losses_must_be_scalar(self):
        problem = Problem(QUAD.problem.upper, lambda x, y, batch: y**2)
        with pytest.raises(ValueError, match=r"Problem.lower returned float64\[3\]; a scalar"):
            ct.probe(problem, QUAD.x0, QUAD.y0)
