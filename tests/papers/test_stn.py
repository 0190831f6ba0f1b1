"""Self-tuning networks: the models of the best response, the hypergradient through them, STN."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import distance, flat, same_bits
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel import hypergrad, oracles, problems
from bilevel.lower import responses
from bilevel.lower.responses import Affine, AffineParameters, HyperDense
from bilevel.methods import STN
from bilevel.methods.implicit.stn import _entropy, _inverse_softplus, _pairs, _perturbed
from bilevel.problem import Batch

run = jax.jit(bl.run, static_argnames="steps")


def start(method, case, seed=0):
    return method.init(case.problem, case.x0, case.y0, key=jax.random.key(seed))


def exact_model(case, x) -> AffineParameters:
    """The tangent of y* at a vector x, by its closed form."""

    @jax.jit
    def tangent(x):
        slope = jax.jacobian(case.y_star)(x)
        return AffineParameters(slope, case.y_star(x) - slope @ x)

    return tangent(x)


# --- the method ---------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [True, False])
def test_quad_is_solved_to_rounding(centred):
    """Specification 8.3: distance 2e-15, slope and offset exact to rounding."""
    case = problems.quad()
    method = STN(0.05, 0.2, response=Affine(centred=centred), sigma0=0.5, tune_sigma=False)
    assert (method.perturbations, method.warm_up) == (32, 50)
    assert (method.train_steps, method.valid_steps) == (2, 1)
    state, info = run(case.problem, method, start(method, case), steps=3000)
    exact = exact_model(case, case.x_star)
    assert distance(state.x, case.x_star) < 1e-14
    assert distance(state.phi.slope, exact.slope) < 2e-14
    assert distance(state.phi.offset, case.y_star(jnp.zeros(2))) < 1e-14
    np.testing.assert_allclose(info["sigma"], 0.5, rtol=1e-14)


def test_large_perturbations_bias_a_curved_response():
    """With x held the error of the hypergradient falls like σ²."""
    case = problems.curv()

    @jax.jit
    def error(sigma):
        method = STN(0.0, 0.1, sigma0=sigma, tune_sigma=False, perturbations=256)
        state, _ = bl.run(case.problem, method, start(method, case), steps=300)
        h = hypergrad.best_response(case.problem, Affine(), state.phi, state.x)
        return jnp.linalg.norm(h.grad - case.gradient(case.x0))

    wide, narrow = error(0.2), error(0.05)
    assert 11 < wide / narrow < 23  # 16 as σ → 0
    assert narrow < 1e-2


def test_sigma_settles_where_entropy_and_curvature_balance():
    """On a quadratic `E l(x + σe) = l(x) + ½ Σ σ² l_jj`, least with −τ Σ log σ at `σ² = τ/l_jj`."""
    case, tau = problems.quad(), 0.1
    method = STN(0.05, 0.2, 0.02, entropy=tau, perturbations=256)
    state, _ = run(case.problem, method, start(method, case), steps=3000)
    curvature = jnp.diag(jax.hessian(case.value)(case.x_star))
    np.testing.assert_allclose(jax.nn.softplus(state.raw_sigma), jnp.sqrt(tau / curvature), 0.03)
    assert distance(state.x, case.x_star) < 1e-12  # a quadratic is blind to pairs ±e


def test_valid_step_is_the_gradient_of_the_perturbed_upper_loss():
    """In x and in σ, against differences at the same perturbations."""
    case = problems.curv()
    method = STN(1.0, 0.0, 1.0, sigma0=0.3, entropy=0.1, warm_up=0, perturbations=8)
    state = start(method, case)
    slope = jax.random.normal(jax.random.key(5), (3, 2))
    state = state._replace(phi=AffineParameters(slope, state.phi.offset))
    moved, info = method.step(case.problem, state, Batch())
    *_, valid_key = jax.random.split(state.key, 3)
    noise = _pairs(jax.random.split(valid_key, 1)[0], state.x, 8)

    def objective(flat):
        x, raw = flat[:2], flat[2:]
        sigma = np.log1p(np.exp(raw))
        losses = [
            case.problem.upper(p, Affine()(state.phi, p), None) for p in x + sigma * np.array(noise)
        ]
        entropy = np.sum(np.log(sigma * np.sqrt(2 * np.pi * np.e)))
        return float(np.mean(losses)) - 0.1 * entropy

    at = np.concatenate([state.x, state.raw_sigma])
    slopes = [(objective(at + e) - objective(at - e)) / 2e-6 for e in 1e-6 * np.eye(4)]
    np.testing.assert_allclose(state.x - moved.x, slopes[:2], rtol=1e-7)
    np.testing.assert_allclose(state.raw_sigma - moved.raw_sigma, slopes[2:], rtol=1e-6)
    np.testing.assert_allclose(info["hypergrad_norm"], np.linalg.norm(slopes[:2]), rtol=1e-7)


def test_lower_loss_is_never_differentiated_in_x():
    case = problems.curv()
    lower = lambda x, y, batch: case.problem.lower(jax.lax.stop_gradient(x), y, batch)  # noqa: E731
    method = STN(0.05, 0.2, warm_up=0)
    one, _ = run(case.problem, method, start(method, case), steps=20)
    other, _ = run(bl.Problem(case.problem.upper, lower), method, start(method, case), steps=20)
    assert distance(one.x, case.x0) > 0.1
    assert distance(one.x, other.x) < 1e-12


def test_a_lower_loss_that_is_a_step_function_of_x_is_followed():
    """Rounded x: every derivative of g in x is zero, and yet y* moves on the scale of σ."""
    upper = lambda x, y, batch: (y - 3.0) ** 2  # noqa: E731
    lower = lambda x, y, batch: (y - 0.01 * jnp.floor(100 * x)) ** 2 / 2  # noqa: E731
    method = STN(0.05, 0.3, sigma0=0.2, tune_sigma=False)
    problem, x0 = bl.Problem(upper, lower), jnp.array(0.0)
    state, _ = run(problem, method, method.init(problem, x0, x0), steps=500)
    assert abs(float(state.x) - 3) < 0.05
    assert abs(float(state.phi.slope[0]) - 1) < 0.1


def test_x_and_sigma_wait_for_the_warm_up():
    case = problems.quad()
    method = STN(0.05, 0.2, warm_up=7)
    state, _ = run(case.problem, method, start(method, case), steps=7)
    assert int(state.k) == 7
    assert same_bits(state.x, case.x0)
    assert same_bits(state.raw_sigma, start(method, case).raw_sigma)
    assert same_bits(state.updates[::2], start(method, case).updates[::2])
    assert distance(state.y, case.y0) > 0.1
    later, _ = run(case.problem, method, state, steps=1)
    assert distance(later.x, case.x0) > 1e-3


def test_y_is_the_model_at_x():
    case = problems.nested()
    method = STN(0.01, 0.1, warm_up=0)
    state = start(method, case)
    assert same_bits(state.y, case.y0)
    state, _ = run(case.problem, method, state, steps=5)
    assert distance(state.y, method.response(state.phi, state.x)) < 1e-14


def test_every_train_and_valid_step_reads_its_own_batch():
    """Rows that shift the target: the result depends on each, and on nothing beyond."""
    upper = lambda x, y, batch: (y - batch) ** 2 + x**2  # noqa: E731
    lower = lambda x, y, batch: (y - x - batch) ** 2 / 2  # noqa: E731
    problem, one = bl.Problem(upper, lower), jnp.array(1.0)
    method = STN(0.1, 0.2, train_steps=3, valid_steps=2, warm_up=0)
    assert method.draws(problem) == bl.Draws(upper=2, lower=3)
    state = method.init(problem, one, one)

    @jax.jit
    def after(upper, lower):
        return method.step(problem, state, Batch(jnp.array(upper), jnp.array(lower)))[0].x

    base = after([0.0, 0.0], [0.0, 0.0, 0.0])
    for i in range(2):
        assert abs(after(np.eye(2)[i], [0.0, 0.0, 0.0]) - base) > 1e-3
    for i in range(3):
        assert abs(after([0.0, 0.0], np.eye(3)[i]) - base) > 1e-3


@pytest.mark.parametrize("steps", [None, 5000])
def test_theory_brings_the_gradient_down(steps):
    case = problems.quad()
    constants = bl.certificates.probe(case.problem, case.x0, case.y0)
    method = STN.theory(constants, steps=steps)
    state, _ = run(case.problem, method, start(method, case), steps=5000)
    first, last = (jnp.linalg.norm(case.gradient(x)) for x in (case.x0, state.x))
    assert last < 0.02 * first


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"perturbations": 3}, "perturbations is 3; an even number"),
        ({"train_steps": 0}, "train_steps is 0; a whole number of at least 1"),
        ({"valid_steps": 1.5}, "valid_steps is 1.5"),
        ({"warm_up": -1}, "warm_up is -1; a whole number of at least 0"),
        ({"response": 3}, "response is 3; a model of bilevel.responses"),
    ],
)
def test_wrong_settings_are_refused(setting, words):
    with pytest.raises((ValueError, TypeError), match=words):
        STN(**setting)


# --- its pieces ---------------------------------------------------------------------------------


def test_entropy_of_a_normal_distribution():
    raw = {"a": jnp.array([-1.0, 0.3]), "b": jnp.array(2.0)}
    sigma = np.log1p(np.exp([-1.0, 0.3, 2.0]))
    expected = sum(0.5 * math.log(2 * math.pi * s**2) + 0.5 for s in sigma)
    np.testing.assert_allclose(_entropy(raw), expected, rtol=1e-14)


def test_sigma_starts_as_asked():
    sigma = jnp.array([1e-4, 0.5, 3.0, 200.0])
    np.testing.assert_allclose(jax.nn.softplus(_inverse_softplus(sigma)), sigma, rtol=1e-10)


def test_perturbations_have_the_scale_of_sigma_and_come_in_pairs():
    x = {"a": jnp.array([3.0, -1.0]), "b": jnp.array(2.0)}
    raw = jax.tree.map(_inverse_softplus, {"a": jnp.array([0.5, 2.0]), "b": jnp.array(0.1)})
    points = _perturbed(x, raw, _pairs(jax.random.key(0), x, 20_000))
    np.testing.assert_allclose(points["a"].std(0), [0.5, 2.0], rtol=0.02)
    np.testing.assert_allclose(points["b"].std(), 0.1, rtol=0.02)
    np.testing.assert_allclose(points["a"].mean(0), x["a"], rtol=1e-12)
    pair = points["a"][3] + points["a"][10_003]
    np.testing.assert_allclose(pair, 2 * x["a"], rtol=1e-12)
    mixed = np.corrcoef(points["a"][:, 0], points["b"])[0, 1]
    assert abs(mixed) < 0.03


def test_mapped_calls_count_as_many():
    case = problems.quad()
    call = lambda: oracles.lower_grad(case.problem, case.x0, case.y0, None)  # noqa: E731
    with oracles.counting() as outer:
        with oracles.counting() as inner, oracles.mapped(3):
            call()
            with oracles.mapped(4):
                call()
        call()
    assert dict(inner) == {"lower_grad": 15}
    assert dict(outer) == {"lower_grad": 16}


# --- hypergradient ------------------------------------------------------------------------------


def test_exact_response_gives_the_hypergradient_of_curv():
    """Specification 8.2, at x = (1, −1)."""
    case = problems.curv()
    phi = exact_model(case, case.x0)
    with oracles.counting() as calls:
        h = jax.jit(lambda x: hypergrad.best_response(case.problem, Affine(), phi, x))(case.x0)
    np.testing.assert_allclose(h.grad, (11.766004712709, -12.876659777570), rtol=0, atol=5e-12)
    np.testing.assert_allclose(h.grad, jax.jit(case.gradient)(case.x0), rtol=1e-12)
    np.testing.assert_allclose(h.y, jax.jit(case.y_star)(case.x0), rtol=1e-13)
    np.testing.assert_allclose(h.value, jax.jit(case.value)(case.x0), rtol=1e-13)
    assert dict(calls) == {"upper_grad": 1}


@pytest.mark.slow
def test_error_is_linear_in_the_errors_of_the_response():
    case = problems.curv()
    phi, exact = exact_model(case, case.x0), case.gradient(case.x0)
    wrong = AffineParameters(jnp.ones((3, 2)), jnp.ones(3))

    def error(scale):
        off = jax.tree.map(lambda p, q: p + scale * q, phi, wrong)
        h = hypergrad.best_response(case.problem, Affine(), off, case.x0)
        return float(jnp.linalg.norm(h.grad - exact))

    np.testing.assert_allclose(error(1e-4) / error(1e-5), 10, rtol=1e-2)


# --- models -------------------------------------------------------------------------------------


def test_affine_is_affine_on_trees():
    x = {"a": jnp.array(2.0), "b": jnp.array([[1.0, -1.0]])}
    y = [jnp.array([0.5, 0.25]), jnp.array(3.0), jnp.ones((2, 2))]
    model = Affine()
    phi = model.init(x, y, jax.random.key(0))
    assert same_bits(model(phi, x), y)
    slope = [jnp.arange(6.0).reshape(2, 3), jnp.array([1.0, 0.0, -1.0]), jnp.ones((2, 2, 3))]
    out = model(AffineParameters(slope, y), x)
    np.testing.assert_allclose(out[0], [0.5 + 1 - 2, 0.25 + 6 + 4 - 5])
    np.testing.assert_allclose(out[1], 3 + 2 + 1)
    np.testing.assert_allclose(out[2], 1 + 2 * np.ones((2, 2)))
    assert jax.tree.structure(out) == jax.tree.structure(y)


def test_centred_steps_are_those_of_the_model_about_x():
    """One preconditioned step, against a step on `(b, W)` of `ŷ(x + e) = b + W e`."""
    case, x, sigma, lr = problems.curv(), jnp.array([2.0, -3.0]), jnp.array([0.3, 0.7]), 0.2
    keys = jax.random.split(jax.random.key(1), 3)
    phi = AffineParameters(jax.random.normal(keys[0], (3, 2)), jax.random.normal(keys[1], (3,)))
    e = jnp.stack([sigma * d for d in jax.random.normal(keys[2], (5, 2))])

    def loss(b, W):
        return jnp.mean(jnp.stack([case.problem.lower(x + d, b + W @ d, None) for d in e]))

    b, W = phi.slope @ x + phi.offset, phi.slope
    g_b, g_W = jax.grad(loss, (0, 1))(b, W)
    new_b, new_W = b - lr * g_b, W - lr * g_W / jnp.stack([sigma**2] * 3)

    points = jnp.stack([x + d for d in e])
    gradient, norm = responses.fit_gradient(case.problem, Affine(), phi, points, None)
    direction = Affine().precondition(gradient, x, sigma)
    moved = jax.tree.map(lambda p, d: p - lr * d, phi, direction)
    np.testing.assert_allclose(moved.slope, new_W, rtol=1e-12)
    np.testing.assert_allclose(moved.slope @ x + moved.offset, new_b, rtol=1e-12)
    assert norm > jnp.linalg.norm(g_b)  # the root mean square is above the norm of the mean


def test_without_perturbations_the_slope_is_not_determined():
    """At one point alone ŷ fits y* wherever the slope starts; spread points fit the slope too."""
    case = problems.quad()
    exact, model = exact_model(case, case.x0), Affine(centred=False)
    alone = jnp.stack([case.x0] * 4)
    near = alone + jnp.array([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])

    @jax.jit
    def fitted(slope, points):
        def step(_, phi):
            gradient, _ = responses.fit_gradient(case.problem, model, phi, points, None)
            return jax.tree.map(lambda p, d: p - 0.15 * d, phi, gradient)

        return jax.lax.fori_loop(0, 12_000, step, AffineParameters(slope, case.y0))

    ends = [fitted(slope, alone) for slope in (jnp.zeros((3, 2)), jnp.ones((3, 2)))]
    for phi in ends:
        assert distance(model(phi, case.x0), case.y_star(case.x0)) < 1e-12
        assert distance(phi.slope, exact.slope) > 0.1
    assert distance(ends[0].slope, ends[1].slope) > 0.1
    for slope in (jnp.zeros((3, 2)), jnp.ones((3, 2))):
        assert distance(fitted(slope, near), exact) < 1e-10


def test_fit_gradient_is_the_derivative_of_the_mean_lower_loss():
    case, model = mlp(), HyperDense()
    phi = model.init(case.x0, case.y0, jax.random.key(2))
    points = around(case.x0, 0.5, 4, seed=3)
    fit_gradient = jax.jit(
        lambda phi: responses.fit_gradient(case.problem, model, phi, points, None)
    )
    gradient, _ = fit_gradient(phi)
    at, unravel = ravel_pytree(phi)

    @jax.jit
    def loss(at):
        losses = [case.problem.lower(p, model(unravel(at), p), None) for p in points]
        return jnp.mean(jnp.stack(losses))

    slopes = [(loss(at + e) - loss(at - e)) / 2e-6 for e in 1e-6 * np.eye(at.size)]
    np.testing.assert_allclose(flat(gradient), slopes, rtol=1e-6, atol=1e-9)


def test_best_response_through_dense_layers_is_the_derivative_of_the_upper_loss():
    case, model = mlp(), HyperDense()
    phi = model.init(case.x0, case.y0, jax.random.key(2))
    phi = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.cos(leaf), phi)  # gains of every size
    h = hypergrad.best_response(case.problem, model, phi, case.x0)

    def loss(x):
        return case.problem.upper(x, model(phi, x), None)

    slopes = [(loss(case.x0 + e) - loss(case.x0 - e)) / 2e-6 for e in 1e-6 * np.eye(2)]
    np.testing.assert_allclose(h.grad, slopes, rtol=1e-7)


def test_dense_layers_have_gains_linear_in_x():
    x = {"a": jnp.array([0.5, -2.0]), "b": jnp.array(1.0)}
    y = [{"weight": jnp.ones((3, 2)), "bias": jnp.zeros(3)}]
    model = HyperDense()
    phi = model.init(x, y, jax.random.key(0))
    (layer,) = phi
    flat_x = np.array([0.5, -2.0, 1.0])
    for row in range(3):
        gain, shift = layer.V[row] @ flat_x, layer.C[row] @ flat_x
        out = model(phi, x)[0]
        np.testing.assert_allclose(out["weight"][row], 1 + gain * layer.W1[row], rtol=1e-14)
        np.testing.assert_allclose(out["bias"][row], shift * layer.b1[row], rtol=1e-14)
    assert 0 < np.abs(layer.V).max() < 0.05
    assert np.abs(layer.W1).max() <= 2**-0.5
    assert jax.tree.structure(model(phi, x)) == jax.tree.structure(y)


@pytest.mark.parametrize(
    "y", [jnp.ones(3), {"weight": jnp.ones((2, 3)), "bias": jnp.ones(3)}, {"weight": jnp.ones(2)}]
)
def test_dense_model_wants_layers(y):
    with pytest.raises(ValueError, match=r"tree of .* is needed"):
        HyperDense().init(jnp.ones(2), y, jax.random.key(0))


# --- the structured model at work ---------------------------------------------------------------


def mlp() -> problems.Case:
    """A perceptron with two hidden units, 3-2-1, and one log-penalty a layer."""
    rng = np.random.default_rng(0)
    inputs = jnp.array(rng.normal(size=(60, 3)))
    target = jnp.tanh(inputs @ jnp.array([2.0, -2, 1])) + jnp.tanh(inputs @ jnp.array([0.5, 1, -1]))
    target += 0.1 * rng.normal(size=60)

    def error(y, rows):
        first, last = y
        bias = jnp.broadcast_to(first["bias"], (30, 2))
        hidden = jnp.tanh(inputs[rows] @ first["weight"].T + bias)
        out = (hidden @ last["weight"].T)[:, 0] + last["bias"][0]
        return jnp.mean((out - target[rows]) ** 2) / 2

    def lower(x, y, batch):
        penalties = [sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(layer)) for layer in y]
        return error(y, slice(30)) + jnp.exp(x - 4) @ jnp.stack(penalties) / 2

    x0 = jnp.zeros(2)
    y0 = [
        {"weight": jnp.array(rng.normal(size=(2, 3))), "bias": jnp.zeros(2)},
        {"weight": jnp.array(rng.normal(size=(1, 2))), "bias": jnp.zeros(1)},
    ]
    first, unravel = ravel_pytree(y0)

    def y_star(x):
        loss = lambda y: lower(x, unravel(y), None)  # noqa: E731
        descend = lambda _, y: y - 0.5 * jax.grad(loss)(y)  # noqa: E731
        newton = lambda _, y: y - jnp.linalg.solve(jax.hessian(loss)(y), jax.grad(loss)(y))  # noqa: E731
        y = jax.lax.fori_loop(0, 2000, descend, first)
        return unravel(jax.lax.fori_loop(0, 5, newton, y))

    problem = bl.Problem(lambda x, y, batch: error(y, slice(30, 60)), lower)
    return problems.Case("mlp", problem, x0, y0, jax.jit(y_star), 0.04, 1.7)


def around(x, sigma, n, seed):
    noise = sigma * jax.random.normal(jax.random.key(seed), (n, *x.shape))
    return jnp.stack([x + e for e in noise])


def test_dense_model_learns_how_a_perceptron_answers():
    """Trained around x0 through `fit_gradient` alone, judged by y* at points it has not seen."""
    case, model, sigma = mlp(), HyperDense(), 0.3
    constant = case.y_star(case.x0)
    phi = model.init(case.x0, constant, jax.random.key(4))
    update = bl.updates.Momentum(0.1, 0.9)

    @jax.jit
    def train(phi):
        def step(i, carry):
            phi, memory = carry
            points = around(case.x0, sigma, 16, seed=i)
            gradient, _ = responses.fit_gradient(case.problem, model, phi, points, None)
            return update.step(gradient, memory, phi, i)

        return jax.lax.fori_loop(0, 8000, step, (phi, update.init(phi)))[0]

    trained = train(phi)
    points = around(case.x0, sigma, 8, seed=-1)
    answers = [case.y_star(x) for x in points]
    by_constant = sum(distance(constant, y) for y in answers)
    by_model = sum(distance(model(trained, x), y) for x, y in zip(points, answers, strict=True))
    assert by_model < 0.6 * by_constant

    # The upper loss depends on x through y alone, so to a constant its hypergradient is zero.
    exact = np.array([case.value(e) - case.value(-e) for e in 1e-4 * np.eye(2)]) / 2e-4
    h = hypergrad.best_response(case.problem, model, trained, case.x0)
    assert np.linalg.norm(h.grad - exact) < 0.7 * np.linalg.norm(exact)


def ridge_of_one_penalty() -> problems.Case:
    """One dense layer, one log-penalty: where a single gain a unit is the whole affine family."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(30, 5))
    target = inputs @ rng.normal(size=5) + 2 * rng.normal(size=30)
    train, valid = (
        (jnp.array(inputs[i]), jnp.array(target[i])) for i in (slice(15), slice(15, 30))
    )

    def loss(y, data):
        return jnp.mean(((data[0] @ y["weight"].T)[:, 0] + y["bias"][0] - data[1]) ** 2) / 2

    def lower(x, y, batch):
        return loss(y, train) + jnp.exp(x) * jnp.sum(y["weight"] ** 2) / 2

    def y_star(x):
        A = jnp.concatenate([train[0], jnp.ones((15, 1))], axis=1)
        penalty = jnp.exp(x) * jnp.diag(jnp.array([1.0] * 5 + [0.0]))
        w = jnp.linalg.solve(A.T @ A / 15 + penalty, A.T @ train[1] / 15)
        return {"weight": w[None, :5], "bias": w[5:]}

    problem = bl.Problem(lambda x, y, batch: loss(y, valid), lower)
    y0 = {"weight": jnp.zeros((1, 5)), "bias": jnp.zeros(1)}
    return problems.Case("ridge", problem, jnp.array(-2.0), y0, y_star, 0.1, 3.0)


def test_stn_lands_at_the_best_penalty_of_a_grid():
    case = ridge_of_one_penalty()
    method = STN(
        bl.updates.FromOptax(optax.adam, 0.01),
        bl.updates.Momentum(0.05, 0.9),
        response=HyperDense(),
        sigma0=0.3,
        tune_sigma=False,
    )
    state, _ = run(case.problem, method, start(method, case), steps=3000)
    grid = jnp.linspace(-6, 4, 401)
    values = jax.vmap(case.value)(grid)
    assert abs(state.x - grid[jnp.argmin(values)]) < 0.05
    assert abs(case.x0 - grid[jnp.argmin(values)]) > 1
