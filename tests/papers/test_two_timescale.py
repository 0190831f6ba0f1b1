"""The general two-timescale form: why it needs two timescales, and TTSA as an instance of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import start

import bilevel as bl
from bilevel import hypergrad, oracles, problems
from bilevel.linear import Dense, Neumann
from bilevel.methods import SOBA, TTSA, StocBiO
from bilevel.methods.implicit.two_timescale import TwoTimescale
from bilevel.problem import Batch
from bilevel.schedules import Polynomial


def F(x, y, noise):
    return y - x + noise[0]


def G(x, y, noise):
    return y - 2 * x + noise[1]


def distance_after(loop, steps, noise=None):
    """`‖(x, y)‖` from (1, 1); the solution is (0, 0)."""
    noise = jnp.zeros((steps, 2)) if noise is None else noise
    state = loop.init(jnp.ones(()), jnp.ones(()))
    state, _ = jax.lax.scan(lambda s, sample: (loop.step(s, sample), None), state, noise)
    return float(jnp.hypot(state.x, state.y))


@pytest.mark.parametrize(
    ("ratio", "stable"), [(0.1, True), (0.5, True), (0.9, True), (1.1, False), (2.0, False)]
)
def test_a_system_that_only_a_slow_x_stabilises(ratio, stable):
    loop = TwoTimescale(F, G, 0.1 * ratio, 0.1, alternating=False)
    end = distance_after(loop, 60_000)
    assert end < 1e-6 if stable else not end < 1e3


def test_noise_is_averaged_out_on_two_timescales():
    loop = TwoTimescale(F, G, Polynomial(0.5, 0.9), Polynomial(0.5, 0.6), alternating=False)
    noise = 0.5 * jax.random.normal(jax.random.key(0), (8, 100_000, 2))
    assert max(distance_after(loop, 100_000, one) for one in noise) < 0.05


def test_x_set_holds_x():
    loop = TwoTimescale(F, G, 0.05, 0.1, bl.sets.Box(0.5, 2.0))
    state = loop.init(jnp.ones(()), jnp.ones(()))
    for _ in range(200):
        state = loop.step(state, jnp.zeros(2))
    np.testing.assert_allclose((state.x, state.y), (0.5, 1.0), rtol=1e-6)


@pytest.mark.parametrize("alternating", [True, False])
def test_ttsa_is_an_instance(alternating):
    case, linear = problems.quad(), Neumann(19, 0.4)
    steps = Polynomial(0.05, 0.6), Polynomial(0.4, 0.4)

    def surrogate(x, y, batch):
        return hypergrad.implicit(case.problem, x, y, batch, linear=linear).grad

    def lower_gradient(x, y, batch):
        return oracles.lower_grad(case.problem, x, y, batch.lower)

    loop = TwoTimescale(surrogate, lower_gradient, *steps, alternating=alternating)
    method = TTSA(*steps, linear, alternating)
    mine, its = loop.init(case.x0, case.y0), start(method, case)
    for _ in range(5):
        mine = jax.jit(lambda s: loop.step(s, Batch()))(mine)
        its, _ = jax.jit(lambda s: method.step(case.problem, s, Batch()))(its)
    np.testing.assert_allclose(mine.x, its.x, rtol=1e-14)
    np.testing.assert_allclose(mine.y, its.y, rtol=1e-14)


# --- how slow x must be: critical x steps on `quad` (spec section 4) -----------------------

CRITICAL = {
    "exact adjoint, simultaneous, 0.4": (lambda a: TTSA(a, 0.4, Dense(), False), 0.13195),
    "exact adjoint, alternating, 0.4": (lambda a: StocBiO(a, 0.4, Dense(), 1), 1.08),
    "SOBA 0.4": (lambda a: SOBA(a, 0.4, 0.4), 0.033057),
    "SOBA 0.2": (lambda a: SOBA(a, 0.2, 0.2), 0.021432),
    "SOBA 0.1": (lambda a: SOBA(a, 0.1, 0.1), 0.012698),
}


@pytest.mark.parametrize("name", CRITICAL)
def test_critical_x_step(name):
    make, recorded = CRITICAL[name]
    case = problems.quad()
    state = start(make(0.1), case)
    moving = ("x", "y", "v") if getattr(state, "v", None) is not None else ("x", "y")
    flat, unravel = jax.flatten_util.ravel_pytree({name: getattr(state, name) for name in moving})

    @jax.jit
    def spectral_radius(a):
        def step(vector):
            moved, _ = make(a).step(case.problem, state._replace(**unravel(vector)), Batch())
            return jax.flatten_util.ravel_pytree({n: getattr(moved, n) for n in moving})[0]

        return jax.jacfwd(step)(flat)  # the same everywhere: the step is affine

    low, high = recorded / 2, 2 * recorded
    for _ in range(40):
        middle = (low + high) / 2
        radius = np.abs(np.linalg.eigvals(spectral_radius(middle))).max()
        low, high = (middle, high) if radius < 1 else (low, middle)
    assert low == pytest.approx(recorded, abs=1e-4 if recorded < 1 else 1e-2)


def test_coupled_recursion_lemma():
    """The bounds on the averages hold on random sequences that satisfy the recursions."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        c0, d0 = rng.uniform(0.1, 1, 2)
        c1, d1 = np.sqrt(rng.uniform(0, 0.9) * c0 * d0) * np.array(
            [r := rng.uniform(0.5, 2), 1 / r]
        )
        c2, d2 = rng.uniform(0, 0.1, 2)
        steps = 50
        Om, Up, Th = [rng.uniform(0, 5)], [rng.uniform(0, 5)], [rng.uniform(0, 5)]
        for _ in range(steps):
            Up.append(rng.uniform(0, 1) * ((1 - d0) * Up[-1] + d1 * Th[-1] + d2))
            room = Om[-1] + c1 * Up[-1] + c2
            Th.append(rng.uniform(0, 1) * room / c0)
            Om.append(rng.uniform(0, 1) * (room - c0 * Th[-1]))
        first, second = c0 - c1 * d1 / d0, d0 - d1 * c1 / c0
        start = Up[0] + d1 * Th[0] + d2
        bound_th = (Om[0] + c1 / d0 * start) / (first * steps) + (c2 + c1 * d2 / d0) / first
        bound_up = (start + d1 / c0 * Om[0]) / (second * steps) + (d2 + d1 * c2 / c0) / second
        assert np.mean(Th[1:]) <= bound_th * (1 + 1e-12)
        assert np.mean(Up[1:]) <= bound_up * (1 + 1e-12)
