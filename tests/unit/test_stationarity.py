"""Measures of stationarity for kinks, constraints and lower levels with many minimisers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import Problem, lower, problems, sets
from bilevel import certificates as ct
from bilevel.certificates import Gap
from bilevel.lower import Duals

X = jnp.array([0.3, -0.2])


def free(upper=lambda x, y, b: jnp.sum(y) + 0 * jnp.sum(x)):
    return Problem(upper, lambda x, y, b: jnp.sum(y**2))


class TestMinNorm:
    def test_triangle_that_holds_the_origin(self):
        points = jnp.array([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
        found = ct.min_norm(points)
        assert jnp.linalg.norm(found.point) < 1e-7
        np.testing.assert_allclose(found.weights, [0.5, 0.25, 0.25], atol=1e-6)

    def test_edge_and_corner(self):
        edge = ct.min_norm(jnp.array([[1.0, 3.0], [1.0, -1.0], [5.0, 0.0]]))
        np.testing.assert_allclose(edge.point, [1, 0], atol=1e-10)
        corner = ct.min_norm(jnp.array([[1.0, 1.0], [2.0, 1.0], [1.0, 3.0]]))
        np.testing.assert_allclose(corner.point, [1, 1])

    def test_random_hulls_satisfy_the_optimality_condition(self):
        points = jax.random.normal(jax.random.key(0), (8, 40, 5)) + 0.7
        found = jax.jit(jax.vmap(ct.min_norm))(points)
        along = jnp.einsum("bpn,bn->bp", points, found.point).min(1)
        np.testing.assert_allclose(along, jnp.sum(found.point**2, 1), atol=1e-9)
        np.testing.assert_allclose(found.weights.sum(1), 1)
        assert found.weights.min() >= 0


class TestMoreau:
    @pytest.mark.parametrize(
        ("x", "measure"), [(-1.0, 4 / 3), (-0.2, 0.4), (0.3, 0.6), (1.0, 4 / 3)]
    )
    def test_closed_form_on_kink1(self, x, measure):
        case = problems.kink1()
        found = jax.jit(
            lambda x: ct.moreau_gradient(
                case.problem, x, case.y0, c=0.5, steps=2000, gradient=kink1_gradient
            )
        )(jnp.array(x))
        np.testing.assert_allclose(found.norm, measure, atol=0.01)
        prox = np.sign(x) * max(abs(x) - 0.5, 0) / 1.5
        np.testing.assert_allclose(found.prox, prox, atol=5e-3)

    def test_solves_the_lower_problem_where_no_gradient_is_given(self):
        case = problems.kink1()
        found = jax.jit(lambda x: ct.moreau_gradient(case.problem, x, case.y0, c=0.5, steps=100))(
            jnp.array(1.0)
        )
        np.testing.assert_allclose(found.norm, 4 / 3, atol=0.02)

    def test_at_a_smooth_point_it_tends_to_the_gradient(self):
        problem = free()
        for c, tol in ((0.1, 0.1), (0.001, 0.001)):
            found = ct.moreau_gradient(problem, X, X, c=c, gradient=lambda x: 2 * x)
            np.testing.assert_allclose(found.norm, 2 * jnp.linalg.norm(X) / (1 + 2 * c), rtol=1e-3)
            assert abs(found.norm / (2 * jnp.linalg.norm(X)) - 1) < 2.5 * tol

    def test_on_an_upper_set(self):
        """`l = −x` on [0, 1]: stationary at the end, and at x the distance to it once c reaches."""
        problem = Problem(lambda x, y, b: x * y, lambda x, y, b: y**2, upper_set=sets.Box(0.0, 1.0))
        measure = functools.partial(
            ct.moreau_gradient, problem, y0=jnp.array(0.0), c=0.5, gradient=lambda x: -1.0 + 0 * x
        )
        np.testing.assert_allclose(measure(x=jnp.array(1.0)).norm, 0, atol=1e-12)
        np.testing.assert_allclose(measure(x=jnp.array(0.2)).norm, 1, rtol=1e-2)
        np.testing.assert_allclose(measure(x=jnp.array(0.8)).norm, 0.4, rtol=1e-2)


def kink1_gradient(x):
    return x - 1 + 2 * (x > 0).astype(x.dtype)


def goldstein_at(x, radius, **settings):
    case = problems.kink1()
    settings = {"gradient": kink1_gradient} | settings
    return ct.goldstein(case.problem, jnp.asarray(x, float), case.y0, radius=radius, **settings)


class TestGoldstein:
    @pytest.mark.parametrize(("x", "measure"), [(0.0, 0.0), (0.02, 0.0), (0.04, 0.0), (0.06, 1.01)])
    def test_kink1(self, x, measure):
        np.testing.assert_allclose(goldstein_at(x, 0.05), measure, atol=1e-8)

    def test_by_the_best_hypergradient(self):
        case = problems.kink1()
        measure = jax.jit(lambda x: ct.goldstein(case.problem, x, case.y0, radius=0.05, samples=9))
        assert measure(jnp.array(0.04)) < 1e-7
        np.testing.assert_allclose(measure(jnp.array(0.06)), 1.01, atol=1e-7)

    def test_absolute_value(self):
        for x, expected in ((0.03, 0.0), (-0.049, 0.0), (0.051, 1.0), (-2.0, 1.0)):
            np.testing.assert_allclose(goldstein_at(x, 0.05, gradient=jnp.sign), expected)

    def test_larger_balls_and_more_samples_are_not_larger(self):
        def gradient(x):  # of |x_0| + ½ |x_1 − x_0| + ½ ‖x‖²
            s = jnp.sign(x[1] - x[0]) / 2
            return jnp.stack([jnp.sign(x[0]) - s, s]) + x

        @functools.partial(jax.jit, static_argnames="samples")
        def measure(radius, samples=64):
            return ct.goldstein(free(), X, X, radius=radius, samples=samples, gradient=gradient)

        sizes = [float(measure(r)) for r in (1e-6, 0.1, 0.35, 0.6, 1.0)]
        assert all(a >= b - 1e-7 for a, b in itertools.pairwise(sizes)), sizes
        assert sizes[0] == pytest.approx(float(jnp.linalg.norm(gradient(X))), abs=1e-5)
        assert sizes[-1] < 0.2 * sizes[0]
        counts = [float(measure(0.4, samples=p)) for p in (3, 12, 64)]
        assert all(a >= b - 1e-7 for a, b in itertools.pairwise(counts)), counts

    def test_without_a_hypergradient_there_is_no_number(self):
        case = problems.kink1()
        stepped = Problem(case.problem.upper, case.problem.lower, lower_step=lambda x, y, b: y)
        assert jnp.isnan(ct.goldstein(stepped, case.x0, case.y0, radius=0.1, samples=3))


def duals(*inequalities):
    return Duals(jnp.array(inequalities, float), jnp.zeros(0))


class TestLowerKKT:
    CASE = problems.couple1()  # g = (y − 2x)², y <= x: at x = 2, y = 2 with multiplier 4

    @pytest.mark.parametrize("measure", [ct.lower_kkt_residual, ct.fischer_burmeister])
    def test_zero_at_the_solution_only(self, measure):
        at = functools.partial(measure, self.CASE.problem, jnp.array(2.0))
        assert at(jnp.array(2.0), duals(4)) == 0
        assert at(jnp.array(2.0)) < 1e-8  # with multipliers found from y
        for y, multiplier in ((2.0, 3.9), (2.1, 4.0), (1.9, 4.2), (2.0, -4.0)):
            assert at(jnp.array(y), duals(multiplier)) > 0.05

    def test_every_condition_is_seen(self):
        at = functools.partial(ct.lower_kkt_residual, self.CASE.problem, jnp.array(2.0))
        np.testing.assert_allclose(at(jnp.array(2.0), duals(0)), 4)  # ∇_y g alone
        np.testing.assert_allclose(at(jnp.array(2.5), duals(3)), 1.5)  # λ h
        np.testing.assert_allclose(at(jnp.array(4.0), duals(0)), 2)  # h = 2
        np.testing.assert_allclose(at(jnp.array(4.0), duals(-0.5)), 2)

    def test_fischer_burmeister_formula(self):
        value = ct.fischer_burmeister(self.CASE.problem, jnp.array(2.0), jnp.array(1.5), duals(5))
        np.testing.assert_allclose(value, 5.5 - np.hypot(5, 0.5), rtol=1e-12)

    def test_open_sides_and_equations(self):
        eqeq, x = problems.eqeq(), jnp.array([-1.0, 2.0])
        y = eqeq.y_star(x)
        assert ct.lower_kkt_residual(eqeq.problem, x, y) < 1e-8
        assert ct.lower_kkt_residual(eqeq.problem, x, y + 0.1) > 0.1
        kink = problems.kink1()  # y >= 0, open above
        assert ct.lower_kkt_residual(kink.problem, jnp.array(-1.0), jnp.array(0.0)) < 1e-8
        assert ct.lower_kkt_residual(kink.problem, jnp.array(1.0), jnp.array(0.0)) > 0.5

    def test_without_a_set_it_is_the_gradient(self):
        case = problems.quad()
        np.testing.assert_allclose(
            ct.lower_kkt_residual(case.problem, case.x0, case.y0),
            ct.lower_residual(case.problem, case.x0, case.y0),
        )

    def test_multipliers_are_found(self):
        case = problems.halfplane()
        found = lower.duals_at(case.problem, case.x_star, case.y_star(case.x_star))
        np.testing.assert_allclose(found.inequalities, [0.5], atol=1e-8)


class TestValueFunctionKKT:
    @pytest.mark.parametrize("penalty", [1.0, 10.0, 100.0])
    def test_penalised_answer_of_rank1(self, penalty):
        """Its residual is the gap alone: `2/(3γ + 1)²` and the gradients cancel."""
        case = problems.rank1()
        x = 7 / 3 + 2 / (9 * penalty + 3)
        y = jnp.array([1.0, 0.0]) + 2 * penalty / (3 * penalty + 1)
        found = ct.value_function_kkt(case.problem, jnp.array(x), y, penalty=penalty)
        np.testing.assert_allclose(found.gap, 2 / (3 * penalty + 1) ** 2, rtol=1e-6)
        assert max(found.stationarity_x, found.stationarity_y) < 1e-5
        np.testing.assert_allclose(found.residual, found.gap, rtol=1e-2)
        away = ct.value_function_kkt(case.problem, jnp.array(x + 1), y, penalty=penalty)
        assert away.residual > 0.9

    def test_constrained_with_multipliers_of_the_value_function(self):
        """COUPLE1 at its answer: `v'(x) = 2x`, and for any γ one m makes both slopes vanish."""
        case, two = problems.couple1(), jnp.array(2.0)
        gamma = 5.0
        m = 2 * (3 - 2) + gamma * 4
        found = ct.value_function_kkt(case.problem, two, two, penalty=gamma, duals=duals(m))
        np.testing.assert_allclose(found.residual, 0, atol=1e-6)

    def test_bome_residual(self):
        case = problems.rank1()
        x, gamma = jnp.array(7 / 3 + 2 / 93), 10.0
        y = jnp.array([1.0, 0.0]) + 20 / 31
        np.testing.assert_allclose(
            ct.bome_residual(case.problem, x, y), 2 / (3 * gamma + 1) ** 2, rtol=1e-6
        )
        at = case.x_star + 1
        q_free = ct.bome_residual(case.problem, at, case.y_star(at))
        f_x, f_y = jax.grad(case.problem.upper, (0, 1))(at, case.y_star(at), None)
        np.testing.assert_allclose(q_free, f_x**2 + f_y @ f_y, rtol=1e-6)  # at the optimum of g

    def test_eps_kkt_on_couple1(self):
        case, two = problems.couple1(), jnp.array(2.0)
        rho = 3.0
        at = functools.partial(ct.eps_kkt, case.problem, two, penalty=rho)
        exact = at(two, two, y_duals=duals(4 + 2 / rho), z_duals=duals(4))
        np.testing.assert_allclose(exact.eps, 0, atol=1e-9)
        loose = at(jnp.array(2.1), two, y_duals=duals(4), z_duals=duals(4))
        np.testing.assert_allclose(loose.feasibility, 0.4)
        np.testing.assert_allclose(loose.gap, 4 - 1.9**2, rtol=1e-6)  # below v, told as a size
        np.testing.assert_allclose(at(two, two, z_duals=duals(3)).lower, rho)

    def test_lower_gap(self):
        case = problems.rank1()
        gap = ct.lower_gap(case.problem, jnp.array(2.0), jnp.array([1.0, 3.0]))
        np.testing.assert_allclose(gap, 2, rtol=1e-10)


class TestCurvatureAndActiveSets:
    def test_on_a_branch(self):
        case = problems.well_a()
        for y in (1.1, 0.0, -0.9):
            curvature = ct.lower_curvature(case.problem, case.x_star, jnp.array(y))
            np.testing.assert_allclose(curvature, 3 * y**2 - 1, rtol=1e-12)

    def test_along_the_active_face(self):
        """`g = y_0² − y_1²` on the box: at a corner nothing is free, on a side one direction is."""
        problem = Problem(
            lambda x, y, b: jnp.sum(y),
            lambda x, y, b: y[0] ** 2 - 2 * y[1] ** 2 + x * y[0],
            lower_set=sets.Box(-1.0, 1.0),
        )
        x = jnp.array(0.2)
        side = ct.lower_curvature(problem, x, jnp.array([-0.1, 1.0]))
        np.testing.assert_allclose(side, 2)
        saddle = ct.lower_curvature(problem, x, jnp.array([-0.1, 0.0]))
        np.testing.assert_allclose(saddle, -4)
        corner = ct.lower_curvature(problem, jnp.array(9.0), jnp.array([-1.0, 1.0]))
        assert corner == jnp.inf

    def test_agreement(self):
        box = problems.lower_box()
        at = functools.partial(ct.active_set_agreement, box.problem, box.x_star)
        assert at(jnp.array([1.0, 0.2]), jnp.array([1.0, -0.2])) == 1
        assert at(jnp.array([0.9, 0.2]), jnp.array([1.0, -0.2])) == 0.75
        kink = problems.kink1()  # the open side does not count
        assert ct.active_set_agreement(kink.problem, kink.x0, jnp.array(0.0), jnp.array(1.0)) == 0
        quad = problems.quad()
        assert ct.active_set_agreement(quad.problem, quad.x0, quad.y0, quad.y0 + 1) == 1


certify = jax.jit(ct.certify)


def certified(case, x, y=None):
    return certify(case.problem, jnp.asarray(x, float), case.y0 if y is None else y)


class TestCertify:
    @pytest.mark.slow(unless=lambda name: name not in {"cptoy", "cvxcpl"})
    @pytest.mark.parametrize("name", ["halfplane", "couple1", "lower_box", "cptoy", "cvxcpl"])
    def test_constrained_hypergradients(self, name):
        case = problems.ALL[name]()
        at_x0 = certified(case, case.x0)
        expected = ct.projected_gradient_residual(case.problem, case.x0, case.gradient(case.x0))
        np.testing.assert_allclose(at_x0.stationarity, expected, rtol=1e-6)
        outside = Gap.INFEASIBLE if name == "cvxcpl" else Gap(0)  # y0 is 3 beyond a row
        assert Gap(int(at_x0.gaps)) == outside
        assert at_x0.sc_margin > 1e-3
        assert at_x0.kkt_residual > 1e-3
        solved = certified(case, case.x_star, case.y_star(case.x_star))
        assert solved.stationarity < 1e-6
        assert solved.kkt_residual < 1e-6
        assert solved.tracking_error < 1e-6
        assert "Not" not in str(solved)

    def test_margin_of_halfplane_is_its_multiplier(self):
        case = problems.halfplane()
        found = certified(case, case.x_star)
        np.testing.assert_allclose(found.sc_margin, 0.5, rtol=1e-6)
        assert "a force or a slack of 5.00e-01" in str(found)

    def test_kink(self):
        found = certified(problems.kink1(), 0.0)
        assert Gap(int(found.gaps)) == Gap.KINK
        assert "may have a kink" in str(found)
        assert certified(problems.kink1(), 0.1).gaps == 0

    def test_flat_lower_loss(self):
        case = problems.rank1()
        anywhere = certified(case, case.x_star)
        assert jnp.isnan(anywhere.stationarity)
        assert Gap(int(anywhere.gaps)) == Gap.LOWER_FLAT
        assert "Stationarity of x" not in str(anywhere)
        assert "may not be unique" in str(anywhere)
        # Where f is stationary along the flat direction, the formula is that of the optimistic y.
        x = jnp.array(1.0)
        chosen = certified(case, x, case.y_star(x))
        np.testing.assert_allclose(chosen.stationarity, jnp.abs(case.gradient(x)), rtol=1e-6)

    def test_a_lower_maximum_is_not_certified(self):
        case = problems.well_a()
        found = certified(case, 0.0, jnp.array(0.0))
        assert jnp.isnan(found.stationarity)
        assert Gap(int(found.gaps)) == Gap.LOWER_NONCONVEX
        assert "no local minimum" in str(found)

    def test_a_branch_is_said_to_be_one(self):
        case = problems.well_a()
        found = certified(case, 0.1, jnp.array(0.3))
        assert Gap(int(found.gaps)) == Gap.BRANCH
        np.testing.assert_allclose(found.stationarity, jnp.abs(case.gradient(0.1)), rtol=1e-6)
        assert "branch alone" in str(found)
        assert certified(case, 0.1, jnp.array(1.0)).gaps == 0
