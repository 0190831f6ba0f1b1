"""Lower levels with many minimisers or several branches: problems, selections, and methods.

Numbers without a source stand in the specification's table of reference results.
"""

import functools
import math

import cases
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import hypergrad, lower, methods, problems, sets
from bilevel.problem import Batch, Problem

FOLD_X = 0.8


def trajectory(method, case, steps, *, x0=None, y0=None, seed=0):
    """The last state, and what every step left and told."""
    x0, y0 = (
        jnp.asarray(a, float)
        for a in (case.x0 if x0 is None else x0, case.y0 if y0 is None else y0)
    )
    state = method.init(case.problem, x0, y0, key=jax.random.key(seed))
    return _trajectory(case.problem, method, state, steps)


@functools.partial(jax.jit, static_argnums=3)
def _trajectory(problem, method, state, steps):
    def body(state, _):
        state, info = method.step(problem, state, Batch())
        return state, (state.x, state.y, info)

    return jax.lax.scan(body, state, None, length=steps)


def ended(method, case, steps, **start):
    return trajectory(method, case, steps, **start)[0]


# --- the problems --------------------------------------------------------------------------


class TestCircle:
    @pytest.mark.parametrize("optimistic", [False, True])
    def test_y_star_is_the_extreme_of_the_circle(self, optimistic):
        case, x = problems.circle(optimistic=optimistic), jnp.array([0.5, 0.2])
        angles = jnp.linspace(0, 2 * jnp.pi, 100_001)
        circle = x[None] / 2 + jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)
        values = jax.vmap(lambda y: case.problem.upper(x, y, None))(circle)
        extreme = values.min() if optimistic else values.max()
        np.testing.assert_allclose(case.value(x), extreme, atol=1e-8)

    @pytest.mark.parametrize(("optimistic", "value"), [(False, 1.75), (True, -0.25)])
    def test_answer(self, optimistic, value):
        case = problems.circle(optimistic=optimistic)
        np.testing.assert_allclose(case.value(case.x_star), value, atol=1e-15)
        np.testing.assert_allclose(case.gradient(case.x_star), 0, atol=1e-15)
        grid = jnp.stack(jnp.meshgrid(*[jnp.linspace(-3, 3, 121)] * 2), -1).reshape(-1, 2) + 1e-9
        assert jax.vmap(case.value)(grid).min() >= value - 1e-12


class TestBranches:
    @pytest.mark.parametrize("name", ["well_a", "well_b"])
    def test_closed_form_of_the_branch(self, name):
        case = problems.ALL[name]()
        sign = 1 if name == "well_a" else -1
        for x in (-0.38, -0.1, 0.0, 0.2, 0.38, sign * 0.5, sign * 3.0):
            roots = np.roots([1, 0, -1, -x])
            real = roots[np.abs(roots.imag) < 1e-9].real
            expected = real.max() if sign > 0 else real.min()
            np.testing.assert_allclose(case.y_star(jnp.asarray(x)), expected, rtol=1e-12)
        x, y = case.x_star, case.y_star(case.x_star)
        slope = jax.grad(case.y_star)(x)
        np.testing.assert_allclose(slope, 1 / (3 * y**2 - 1), rtol=1e-12)
        assert case.value(x) < 1e-30

    def test_a_branch_ends_at_its_fold(self):
        case = problems.well_a()
        assert jnp.isfinite(case.y_star(jnp.array(-0.3848)))
        assert jnp.isnan(case.y_star(jnp.array(-0.3850)))

    def test_kink_of_well_ns_is_its_answer(self):
        case = problems.well_ns()
        value = jax.jit(jax.vmap(case.value))(jnp.linspace(-0.3, 1, 1301))
        assert case.value(case.x_star) < 1e-15
        assert value.min() > -1e-15
        right, left = (case.gradient(case.x_star + h) for h in (1e-6, -1e-6))
        slope = 1 / (3 * 1.1**2 - 1)
        np.testing.assert_allclose([right, left], [slope, -slope], rtol=1e-4)

    @pytest.mark.parametrize("name", ["fold", "fold_jump"])
    def test_y_star_is_the_global_minimiser(self, name):
        case = problems.ALL[name]()
        lo, hi = (0.0, 2.0) if name == "fold" else (-1.0, 1.0)
        y = jnp.linspace(lo, hi, 20_001)
        for x in (0.1, 0.45, 0.55, 0.89, 0.91, 1.0):
            g = jax.vmap(lambda y, x=x: case.problem.lower(jnp.asarray(x), y, None))(y)
            np.testing.assert_allclose(case.y_star(jnp.asarray(x)), y[jnp.argmin(g)], atol=1e-4)

    def test_fold_numbers(self):
        case = problems.fold()
        np.testing.assert_allclose(case.y_star(jnp.array(0.75)), 0.38490018, atol=1e-8)
        np.testing.assert_allclose(case.y_star(jnp.array(1.0)), 1 / math.sqrt(3), rtol=1e-15)
        np.testing.assert_allclose(jax.grad(case.y_star)(1.0), math.sqrt(3) / 2, rtol=1e-12)

    def test_jump(self):
        case = problems.fold_jump()
        at = (1 + math.sqrt(97)) / 12
        assert at == pytest.approx(0.9040714835, abs=1e-10)
        below, above = case.y_star(jnp.array(at - 1e-9)), case.y_star(jnp.array(at + 1e-9))
        np.testing.assert_allclose([below, above], [-1, 0.5], atol=1e-7)
        for y in (-1.0, 0.5):
            np.testing.assert_allclose(
                case.problem.lower(jnp.array(at), jnp.array(y), None), -0.2693809890, atol=1e-10
            )


# --- two values ----------------------------------------------------------------------------


class TestTwoPoint:
    def test_mean_is_the_gradient_of_the_smoothed_function(self):
        x, r = {"a": jnp.array(1.0), "b": jnp.array([0.02, -2.0])}, 0.1

        def value(x):
            return x["a"] ** 2 + 3 * jnp.abs(x["b"][0]) + x["b"][1]

        def estimate(key):
            return hypergrad.two_point(value, x, key, r)

        keys = jax.random.split(jax.random.key(0), 100_000)
        found = jax.tree.map(lambda row: row.mean(0), jax.jit(jax.vmap(estimate))(keys))
        # E sign(b + r u) over the ball in three dimensions, u with density 3/4 (1 − u²).
        t = 0.02 / r
        smoothed = 3 * (3 * t - t**3) / 2
        assert found["a"] == pytest.approx(2.0, abs=0.05)
        np.testing.assert_allclose(found["b"], [smoothed, 1.0], atol=0.05)

    def test_extras_come_from_both_ends(self):
        x, key = jnp.array([1.0, 2.0]), jax.random.key(3)
        grad, (ahead, behind) = hypergrad.two_point(lambda x: (x @ x, x), x, key, 0.5, has_aux=True)
        np.testing.assert_allclose((ahead + behind) / 2, x)
        assert jnp.linalg.norm(ahead - x) == pytest.approx(0.5)
        w = (ahead - x) / 0.5
        np.testing.assert_allclose(grad, 2 * (2 * x @ w) * w)
        np.testing.assert_allclose(hypergrad.two_point(lambda x: x @ x, x, key, 0.5), grad)


# --- which of the minimisers ---------------------------------------------------------------


@jax.jit
def _selected(selection, problem, x, y):
    return selection.select(problem, x, y, Batch())


def selected(selection, case, x, y):
    return _selected(selection, case.problem, x, y)


class TestSelections:
    @pytest.mark.slow(unless=lambda steps: steps <= 2000)
    @pytest.mark.parametrize(
        ("steps", "tau", "tol", "error"),
        [(200, 0.05, 1e-3, -1.3e-2), (2000, 0.02, 1e-4, -9.1e-3), (20_000, 0.005, 1e-5, -2.4e-3)],
    )
    def test_switching_gradient_on_rank1(self, steps, tau, tol, error):
        case, x = problems.rank1(), jnp.array(2.0)
        selection = hypergrad.SwitchingGradient(tau, 0.25, tol, steps=steps)
        found = selected(selection, case, x, jnp.zeros(2))
        assert found.value - case.value(x) == pytest.approx(error, rel=0.05)
        assert 0 <= found.gap <= 4 * tol

    @pytest.mark.parametrize("penalty", [1.0, 10.0, 100.0])
    def test_penalty_on_rank1(self, penalty):
        case, x = problems.rank1(), jnp.array(2.0)
        found = selected(hypergrad.PenalisedSelection(penalty), case, x, jnp.zeros(2))
        error = -(1 / 4) / (1 + 2 * penalty)
        np.testing.assert_allclose(found.value - case.value(x), error, rtol=1e-4)

    @pytest.mark.parametrize("pessimistic", [False, True])
    def test_penalty_bounds_the_value_on_circle(self, pessimistic):
        case, x = problems.circle(optimistic=not pessimistic), jnp.array([1.0, 0.5])
        for penalty in (30.0, 300.0):
            selection = hypergrad.PenalisedSelection(penalty, pessimistic)
            found = selected(selection, case, x, case.y_star(x))
            error = (found.value - case.value(x)) * (1 if pessimistic else -1)
            assert 0 < error < 1 / penalty


class TestZerothOrder:
    def test_igfm(self):
        method = methods.IGFM(0.3, hypergrad.SwitchingGradient(0.05, 0.25, 1e-3, steps=500), 0.1)
        case = problems.rank1()
        assert abs(ended(method, case, 150).x - case.x_star) < 1e-2

    def test_chen_li_so_ends_at_the_penalised_answer(self):
        method = methods.ChenLiSo(0.3, hypergrad.PenalisedSelection(50.0), 0.1)
        case = problems.rank1()
        x = ended(method, case, 150).x
        np.testing.assert_allclose(x - case.x_star, 2 / (9 * 50 + 3), rtol=1e-2)

    @pytest.mark.slow(unless=lambda pessimistic: pessimistic)
    @pytest.mark.parametrize("pessimistic", [True, False])
    def test_chen_li_so_on_circle(self, pessimistic):
        case = problems.circle(optimistic=not pessimistic)
        method = methods.ChenLiSo(0.1, hypergrad.PenalisedSelection(100.0, pessimistic), 0.1)
        _, (xs, _, _) = trajectory(method, case, 80)
        np.testing.assert_allclose(xs[-40:].mean(0), case.x_star, atol=0.03)


# --- superquantiles of the Gibbs measure ------------------------------------------------------


class Polar(eqx.Module):
    """Nodes about x/2 in polar coordinates, dense at the angle of x; exact for `circle`."""

    r: jax.Array
    u: jax.Array

    def __init__(self, temperature, radii=61, angles=200):
        r = 1 + 7 * math.sqrt(temperature / 2) * jnp.linspace(-1, 1, radii)
        u = (2 * jnp.arange(float(angles)) + 1) / angles - 1
        self.r, self.u = (a.ravel() for a in jnp.meshgrid(r, u))

    def __call__(self, x):
        angle = jnp.arctan2(x[1], x[0]) + jnp.pi * self.u**3
        around = jnp.stack([self.r * jnp.cos(angle), self.r * jnp.sin(angle)], 1)
        return x[None] / 2 + around, self.r * self.u**2


@jax.jit
def _by_quadrature(x, temperature, level, nodes):
    case, sampler = problems.circle(), lower.Quadrature(nodes)
    cloud = sampler.draw(case.problem, x, None, None, temperature=temperature, first=True, key=None)
    return hypergrad.superquantile(case.problem, x, cloud, temperature=temperature, level=level)


def by_quadrature(x, temperature, level, **nodes):
    return _by_quadrature(x, jnp.array(temperature), level, Polar(temperature, **nodes))


class TestTail:
    def test_unweighted(self):
        high = hypergrad.tail(jnp.arange(10.0), jnp.full(10, 0.1), 0.3)
        assert high.mean == pytest.approx(8.0)
        np.testing.assert_allclose(high.inside, [0] * 7 + [1 / 3] * 3, atol=1e-15)

    def test_the_point_at_the_quantile_is_split(self):
        weights = jnp.array([0.5, 0.2, 0.3])
        high = hypergrad.tail(jnp.array([1.0, 3.0, 2.0]), weights, 0.4)
        assert high.quantile == 2
        assert high.mean == pytest.approx((0.2 * 3 + 0.2 * 2) / 0.4)
        np.testing.assert_allclose(high.inside, [0, 0.5, 0.5])

    def test_is_the_least_over_b(self):
        values = jax.random.normal(jax.random.key(0), (50,))
        weights = jax.nn.softmax(jax.random.normal(jax.random.key(1), (50,)))
        b = jnp.linspace(-3, 3, 1001)[:, None]
        excess = jnp.maximum(values[None] - b, 0) @ weights
        least = jnp.min(b[:, 0] + excess / 0.2)
        assert hypergrad.tail(values, weights, 0.2).mean == pytest.approx(least, abs=1e-3)


class TestSuperquantile:
    X = jnp.array([0.5, 0.2])

    @pytest.mark.parametrize(
        ("level", "error"), [(0.3, -0.0763), (0.1, -0.0087), (0.03, 0.0006), (0.01, 0.0037)]
    )
    def test_value_on_circle(self, level, error):
        h = by_quadrature(self.X, 1e-4, level)
        assert h.value - problems.circle().value(self.X) == pytest.approx(error, abs=1e-4)

    def test_the_cap_alone_biases_down(self):
        """T → 0: the mean over the highest part d of the circle."""
        T, d = 1e-6, 0.3
        bias = by_quadrature(self.X, T, d).value - problems.circle().value(self.X)
        cap = -jnp.linalg.norm(self.X) * (1 - math.sin(math.pi * d) / (math.pi * d))
        assert bias == pytest.approx(cap, abs=1e-3)

    def test_gradient_is_that_of_the_value(self):
        T, d, step = 1e-2, 0.1, 1e-4
        nodes = {"radii": 301, "angles": 400}
        grad = by_quadrature(self.X, T, d, **nodes).grad
        slopes = [
            by_quadrature(self.X + step * e, T, d, **nodes).value
            - by_quadrature(self.X - step * e, T, d, **nodes).value
            for e in jnp.eye(2)
        ]
        np.testing.assert_allclose(grad, jnp.array(slopes) / (2 * step), atol=5e-4)

    def test_translated_losses_have_the_reparametrised_gradient(self):
        """On `circle` g(x, y) = G(y − x/2): the gradient is that of `f(x, u + x/2)`."""
        case, T, d = problems.circle(), jnp.array(1e-2), 0.1
        sampler = lower.Quadrature(Polar(1e-2, radii=301, angles=400))
        cloud = sampler.draw(case.problem, self.X, None, None, temperature=T, first=True, key=None)
        h = hypergrad.superquantile(case.problem, self.X, cloud, temperature=T, level=d)
        f = jax.vmap(lambda y: case.problem.upper(self.X, y, None))(cloud.y)
        f_x = jax.vmap(lambda y: jax.grad(case.problem.upper)(self.X, y, None))(cloud.y)
        moved = f_x + self.X[None] / 2
        expected = hypergrad.tail(f, cloud.weights, d).inside @ moved
        np.testing.assert_allclose(h.grad, expected, atol=5e-4)
        alone = hypergrad.tail(f, cloud.weights, d).inside @ f_x  # without the covariance
        assert jnp.linalg.norm(alone - expected) > 0.2

    def test_optimistic_is_the_mirror_image(self):
        case = problems.circle()
        mirrored = Problem(lambda x, y, b: -case.problem.upper(x, y, b), case.problem.lower)
        sampler, T = lower.Quadrature(Polar(1e-2)), jnp.array(1e-2)
        cloud = sampler.draw(case.problem, self.X, None, None, temperature=T, first=True, key=None)
        settings = {"temperature": T, "level": 0.1}
        best = hypergrad.superquantile(case.problem, self.X, cloud, pessimistic=False, **settings)
        worst = hypergrad.superquantile(mirrored, self.X, cloud, **settings)
        np.testing.assert_allclose(best.value, -worst.value)
        np.testing.assert_allclose(best.grad, -worst.grad)


class TestMALA:
    @pytest.mark.parametrize("adjusted", [True, False])
    def test_gaussian(self, adjusted):
        """`g = y'Ay/2` at temperature T has covariance T A⁻¹; unadjusted, one a bit wider."""
        A, T = jnp.diag(jnp.array([1.0, 4.0])), jnp.array(0.1)
        problem = Problem(lambda x, y, b: jnp.sum(y), lambda x, y, b: y @ A @ y / 2 + 0 * x)
        sampler = lower.MALA(1000, steps=60, step_size=0.02, adjusted=adjusted)
        memory = sampler.init(jnp.zeros(2), jax.random.key(0))
        cloud = jax.jit(
            lambda memory: sampler.draw(
                problem,
                jnp.array(0.0),
                memory,
                None,
                temperature=T,
                first=True,
                key=jax.random.key(1),
            )
        )(memory)
        h_L = 0.02 / 0.1 * np.array([1.0, 4.0])
        bias = 1 if adjusted else 1 / (1 - h_L / 2)
        expected = 0.1 / np.array([1.0, 4.0]) * bias
        np.testing.assert_allclose(jnp.var(cloud.y, axis=0), expected, rtol=0.15)
        np.testing.assert_allclose(jnp.mean(cloud.y, axis=0), 0, atol=0.05)
        assert 0.8 < cloud.acceptance < 1

    def test_chains_cover_the_circle(self):
        case, sampler = problems.circle(), lower.MALA(200)
        memory = sampler.init(case.y0, jax.random.key(0))
        cloud = jax.jit(
            lambda memory: sampler.draw(
                case.problem,
                case.x0,
                memory,
                None,
                temperature=jnp.array(1e-2),
                first=True,
                key=jax.random.key(1),
            )
        )(memory)
        off = cloud.y - case.x0[None] / 2
        radius = jnp.linalg.norm(off, axis=1)
        assert jnp.mean(jnp.abs(radius - 1)) < 0.1
        assert jnp.all(jnp.histogram(jnp.arctan2(off[:, 1], off[:, 0]), bins=6)[0] > 3)


class TestSuperquantileGibbs:
    @pytest.mark.slow(unless=lambda T: T == 1e-2)
    @pytest.mark.parametrize(
        ("T", "d", "x_1"), [(1e-2, 0.1, 0.4978), (1e-3, 0.03, 0.4931), (1e-4, 0.01, 0.4982)]
    )
    def test_by_quadrature(self, T, d, x_1):
        sampler = lower.Quadrature(Polar(T, angles=100 if T == 1e-2 else 400))
        method = methods.SuperquantileGibbs(0.1, sampler, T, d)
        x = ended(method, problems.circle(), 300).x
        np.testing.assert_allclose(x, [x_1, 0], atol=3e-3)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("T", "d", "chains", "steps", "h", "x_1"),
        [(1e-2, 0.1, 2000, 20, 2e-3, 0.498), (1e-3, 0.03, 4000, 40, 5e-4, 0.494)],
    )
    def test_by_chains(self, T, d, chains, steps, h, x_1):
        method = methods.SuperquantileGibbs(0.1, lower.MALA(chains, steps, h), T, d)
        _, (xs, _, _) = trajectory(method, problems.circle(), 200)
        np.testing.assert_allclose(xs[-100:].mean(0), [x_1, 0.001], atol=0.01)

    def test_few_chains_and_the_optimistic_answer(self):
        case = problems.circle(optimistic=True)
        method = methods.SuperquantileGibbs(0.1, lower.MALA(200, 10), pessimistic=False)
        _, (xs, ys, info) = trajectory(method, case, 80)
        np.testing.assert_allclose(xs[-40:].mean(0), case.x_star, atol=0.15)
        off = ys[-40:] - xs[-40:] / 2
        assert jnp.all(jnp.abs(jnp.linalg.norm(off, axis=1) - 1) < 0.25)
        assert jnp.all(info["acceptance"] > 0.8)

    def test_refuses_a_lower_set(self):
        case = problems.circle()
        problem = Problem(case.problem.upper, case.problem.lower, lower_set=sets.Box(-1.0, 1.0))
        with pytest.raises(methods.Unsupported, match="lower_set is a Box"):
            methods.SuperquantileGibbs().check(problem)


# --- branches ------------------------------------------------------------------------------


class TestSMBG:
    def test_along_a_branch(self):
        case = problems.well_a()
        state, (xs, _, info) = trajectory(methods.SMBG(0.5, 0.3, 5), case, 60, x0=0, y0=1)
        assert abs(xs[19] - case.x_star) < 1e-7
        assert cases.distance((state.x, state.y), (0.231, 1.1)) < 1e-14
        assert info["lower_grad_norm"][-1] < 1e-14

    def test_through_a_fold_to_the_other_branch(self):
        method = methods.SMBG(0.1, 0.3, 5)
        state, (_, ys, info) = trajectory(method, problems.well_a(), 400, x0=0, y0=-1)
        assert jnp.all(ys[:4] < 0)
        assert ys[4] > 0
        assert 8 < info["hypergrad_norm"].max() < 8.8
        assert cases.distance((state.x, state.y), (0.231, 1.1)) < 1e-12

    def test_the_guard_shortens_steps_at_the_fold(self):
        case = problems.well_a()
        state, (xs, _, _) = trajectory(methods.SMBG(0.1, 0.3, 5, floor=0.5), case, 400, x0=0, y0=-1)
        _, (free, _, _) = trajectory(methods.SMBG(0.1, 0.3, 5), case, 400, x0=0, y0=-1)
        longest = lambda xs: jnp.abs(jnp.diff(xs)).max()  # noqa: E731
        assert longest(xs) < longest(free) / 2
        assert cases.distance((state.x, state.y), (0.231, 1.1)) < 1e-12

    def test_fold(self):
        state = ended(methods.SMBG(0.3, 0.1, 20), problems.fold(), 200, x0=FOLD_X, y0=1.0)
        assert cases.distance((state.x, state.y), (1, 1 / math.sqrt(3))) < 1e-14

    def test_an_active_side_holds_y(self):
        """On `lower_box` one entry of y is held by its bound, which the direction must know."""
        case = problems.lower_box()
        state = ended(methods.SMBG(0.2, 0.3, 30), case, 300)
        assert cases.distance(state.x, case.x_star) < 1e-6

    def test_differentiating_all_steps_from_a_fixed_start(self):
        method = methods.BiOITD(0.1, 0.3, 20, warm=False)
        state = ended(method, problems.well_a(), 200, x0=0.0, y0=1.0)
        assert cases.distance((state.x, state.y), (0.231, 1.1)) < 1e-9
        few = ended(methods.BiOITD(0.1, 0.3, 3, warm=False), problems.well_a(), 200, x0=0.0, y0=1.0)
        assert 1e-4 < abs(few.x - 0.231) < 0.2  # the surrogate's minimiser, not the branch's


class TestTPHSD:
    @pytest.mark.parametrize("start", [(0, 1), (0.5, 2), (0, -1), (-0.5, -2)])
    def test_well_with_a_kink(self, start):
        state = ended(methods.TPHSD(), problems.well_ns(), 3000, x0=start[0], y0=start[1])
        assert cases.distance((state.x, state.y), (0.231, 1.1)) < 1.5e-5

    @pytest.mark.slow
    @pytest.mark.parametrize("start", [(0, 1), (0.5, 2), (0, -1), (-0.5, -2)])
    def test_error_falls_with_the_steps(self, start):
        state = ended(methods.TPHSD(), problems.well_ns(), 30_000, x0=start[0], y0=start[1])
        assert cases.distance((state.x, state.y), (0.231, 1.1)) < 6e-7

    def test_restoration_reaches_the_lower_stationary_points(self):
        case, method = problems.well_ns(), methods.TPHSD()
        far = method.init(case.problem, jnp.array(0.0), jnp.array(50.0))
        state, info = jax.jit(lambda s: method.step(case.problem, s, Batch()))(far)
        assert info["restored"] == 1
        assert info["lower_grad_norm"] > 1e5
        assert jnp.abs(jax.grad(case.problem.lower, 1)(state.x, state.y, None)) <= 0.15

    def test_it_passes_through_lower_maxima(self):
        _, (_, ys, _) = trajectory(methods.TPHSD(), problems.well_ns(), 3000, x0=0, y0=-1)
        assert jnp.any(jnp.abs(ys) < 0.3)

    def test_refuses_sets(self):
        case = problems.well_ns()
        problem = Problem(case.problem.upper, case.problem.lower, upper_set=sets.Box(-1.0, 1.0))
        with pytest.raises(methods.Unsupported, match="upper_set is a Box"):
            methods.TPHSD().check(problem)
