"""What holds for every method on every problem with a known answer."""

import collections
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    FEW,
    METHODS,
    PROBLEMS,
    aim,
    distance,
    flat,
    limit,
    made,
    run,
    same_bits,
    sampled,
    start,
)

import bilevel as bl
from bilevel import oracles, problems, updates
from bilevel.problem import Batch

DECLARED = {name: make().problem for name, make in PROBLEMS.items()}


def on_one_worker(name):
    """One worker takes all tests of a method: it compiles each problem once for several of them."""
    return pytest.mark.xdist_group(name)


def every_method(test=None, *, but=()):
    """Every method, but those whose row is of these kinds (what each means stands in `Row`)."""
    rows = [
        pytest.param(name, marks=on_one_worker(name))
        for name, row in METHODS.items()
        if not any(getattr(row, kind) for kind in but)
    ]
    decorate = pytest.mark.parametrize("name", rows)
    return decorate if test is None else decorate(test)


def pairs(names, but=()):
    """Methods with the problems they handle; the rest as in `every_method`."""
    rows = [
        pytest.param(name, problem, marks=on_one_worker(name))
        for name, row in METHODS.items()
        if not any(getattr(row, kind) for kind in but)
        for problem in sorted(names)
        if not getattr(bl.methods, name).unsupported(DECLARED[problem])
    ]
    return pytest.mark.parametrize(("name", "problem"), rows)


SOLVED = {"quad", "boxed", "nested", "blocks", "scalar", "shifted", "minmax"}  # x* is known

# Left to `make test-all`: what another problem or another method of the family shows as well.
one_of_each_family = pytest.mark.slow(unless=lambda name: name in FEW)
typical_problems = pytest.mark.slow(
    unless=lambda name, problem: (
        problem == "quad" or (name in FEW and problem in {"boxed", "nested"})
    )
)


def with_x_step(method, step_size: float):
    return eqx.tree_at(lambda m: m.x_update, method, updates.SGD(step_size))


@pytest.mark.slow(
    unless=lambda name, problem: name in FEW and problem in {"quad", "boxed", "nested"}
)
@pairs(PROBLEMS, but=("joint", "line_search"))
def test_direction_is_the_gradient_of_the_value_function(name, problem):
    """Hold x until y has settled; then one unit step shows the direction x moves along."""
    case = PROBLEMS[problem]()
    case = case_without_upper_set(case)
    settled = run(with_x_step(made(name, case), 0.0), case, 3000)
    moved = run(with_x_step(made(name, case), 1.0), case, 1, state=settled)
    direction = flat(case.x0) - flat(moved.x)
    expected = flat(aim(name, case)(case.x0)) if METHODS[name].target else central_differences(case)
    size = np.linalg.norm(expected)
    if METHODS[name].normalised:
        expected, size = expected / size, 1
    error = np.linalg.norm(direction - expected) / size
    assert error < METHODS[name].bias


@typical_problems
@pairs(SOLVED)
def test_closed_form_solution_is_reached(name, problem):
    solution_is_reached(name, problem, jnp.float64)


@one_of_each_family
@every_method
def test_closed_form_solution_is_reached_in_float32(name):
    solution_is_reached(name, "quad", jnp.float32)


@pytest.mark.slow
@pairs(SOLVED - {"quad"})
def test_closed_forms_of_the_others_are_reached_in_float32(name, problem):
    solution_is_reached(name, problem, jnp.float32)


def solution_is_reached(name, problem, dtype):
    case = PROBLEMS[problem](dtype)
    state, x_star = run(made(name, case), case, 4000), limit(name, case)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.x, state.y))} == {jnp.dtype(dtype)}
    scale = 1 + np.linalg.norm(flat(x_star))
    allowed = 1e-3 if dtype == jnp.float64 else 5e-3
    assert distance(state.x, x_star) < allowed * scale
    assert distance(state.y, jax.jit(case.y_star)(x_star)) < 10 * allowed * scale


@pytest.mark.slow(unless=lambda name, problem: name in FEW and problem == "curv")
@pairs(["curv", "ridge"])
def test_gradient_shrinks_where_no_solution_is_known(name, problem):
    case = PROBLEMS[problem]()
    state = run(made(name, case), case, 2000)
    gradient = jax.jit(aim(name, case))
    first, last = (np.linalg.norm(flat(gradient(x))) for x in (case.x0, state.x))
    assert last < METHODS[name].left * first


@typical_problems
@pairs(PROBLEMS)
def test_two_halves_equal_one_run(name, problem):
    case = PROBLEMS[problem]()
    method = made(name, case)
    whole = run(method, case, 20)
    half = run(method, case, 10)
    again = run(method, case, 10, state=half)
    assert same_bits(whole, again)


@pytest.mark.slow(unless=lambda name, steps: name in FEW and steps is None)
@every_method
@pytest.mark.parametrize("steps", [None, 50])
def test_theory_gives_usable_steps(name, steps):
    """Finite after a few steps on samples, decaying or for a horizon, and never the defaults."""
    case = problems.quad_noise()
    look = bl.certificates.probe(case.problem, case.x0, case.y_star(case.x0), Batch(*case.data))
    _, data = sampled(name, case, 2)
    kind = getattr(bl.methods, name)
    method = kind.theory(look, steps=steps)
    slots = {n: 8 for n in ("upper_slots", "lower_slots") if hasattr(method, n)}
    method = dataclasses.replace(method, **slots)
    state = bl.run(case.problem, method, start(method, case), data=data, steps=80)[0]
    assert np.isfinite(flat(state.x)).all()
    assert case.value(state.x) < case.value(case.x0)
    assert repr(method) != repr(kind())


@pytest.mark.slow(
    unless=lambda name, rows, order: name in FEW and (rows, order) == ("quad_noise", "epochs")
)
@every_method
@pytest.mark.parametrize("rows", ["quad_noise", "ridge_rows"])
@pytest.mark.parametrize("order", ["epochs", "replacement"])
def test_two_halves_equal_one_run_on_samples(name, rows, order):
    case = problems.ALL[rows]()
    (method, data), key = sampled(name, case, 3, order), jax.random.key(3)
    whole = run(method, case, 20, data=data, key=key)
    half = run(method, case, 7, data=data, key=key)
    again = run(method, case, 13, data=data, key=key, state=half)
    assert same_bits(whole, again)


@typical_problems
@pairs(PROBLEMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_state_keeps_structure_shapes_and_dtypes(name, problem, dtype):
    case = PROBLEMS[problem](dtype)
    method = made(name, case)
    state = start(method, case)
    new, info = jax.eval_shape(method.step, case.problem, state, Batch())
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for old, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert (old.shape, old.dtype, leaf.weak_type) == (leaf.shape, leaf.dtype, False)
    assert all(jnp.shape(value) == () for value in info.values())
    assert {"upper", "hypergrad_norm", "lower_grad_norm"} <= info.keys()


@every_method
def test_bfloat16_is_kept(name):
    case = problems.shifted(jnp.float32)
    method = made(name, case)
    half = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)  # noqa: E731
    state = method.init(case.problem, half(case.x0), half(case.y0), key=jax.random.key(0))
    new, _ = jax.eval_shape(method.step, case.problem, state, Batch())
    assert {leaf.dtype for leaf in jax.tree.leaves((new.x, new.y))} == {jnp.dtype(jnp.bfloat16)}


@one_of_each_family
@every_method
def test_one_trace_for_many_steps_and_for_a_new_step_size(name):
    traces = collections.Counter()
    case = problems.quad()

    def counted(x, y, batch):
        traces["lower"] += 1
        return case.problem.lower(x, y, batch)

    problem = bl.Problem(case.problem.upper, counted)
    step = jax.jit(lambda method, state: method.step(problem, state, Batch()))
    state = start(made(name, case), case)
    state, _ = step(made(name, case), state)
    once = traces["lower"]
    for speed in (1.0, 0.5, 0.25):
        state, _ = step(made(name, case, speed), state)
    assert traces["lower"] == once


@pytest.mark.slow(unless=lambda name, problem: name in FEW and problem == "nested")
@pairs(["quad", "nested"])
def test_a_step_may_donate_its_state(name, problem):
    case = PROBLEMS[problem]()
    method = made(name, case)
    state = start(method, case)
    step = jax.jit(lambda s: method.step(case.problem, s, Batch())[0], donate_argnums=0)
    for _ in range(3):
        state = step(state)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((case.x0, case.y0)))
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.x, state.y))]
    assert len(set(buffers)) == len(buffers)


@one_of_each_family
@every_method
def test_vmap_over_seeds(name):
    case = problems.quad_noise()
    method, data = sampled(name, case, 2)

    def final(key):
        return run(method, case, 50, data=data, key=key).x

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(final)(keys)
    alone = jnp.stack([final(key) for key in keys])
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    assert distance(together[0], together[1]) > 1e-6


@one_of_each_family
@every_method
def test_vmap_over_step_sizes(name):
    case = problems.quad()
    slow = 0.1 if METHODS[name].joint else 1.0
    several = [made(name, case, speed * slow) for speed in (1.0, 0.5)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    together = jax.vmap(lambda method: run(method, case, 50).x)(stacked)
    alone = jnp.stack([run(method, case, 50).x for method in several])
    np.testing.assert_allclose(together, alone, rtol=1e-9)


@one_of_each_family
@every_method
def test_vmap_over_problems(name):
    case = problems.quad()
    shifts = jnp.array([0.0, 1.0])

    def final(shift):
        lower = jax.tree_util.Partial(_shifted_lower, case.problem.lower, shift)
        problem = bl.Problem(case.problem.upper, lower)
        state = start(made(name, case), case)
        return bl.run(problem, made(name, case), state, steps=30)[0].x

    together = jax.vmap(final)(shifts)
    np.testing.assert_allclose(together, jnp.stack([final(s) for s in shifts]), rtol=1e-9)


def _shifted_lower(lower, shift, x, y, batch):
    return lower(x, y, batch) + shift * y.sum()


@pytest.mark.slow(unless=lambda name, derivative: name in FEW and derivative is jax.grad)
@every_method(but=("line_search",))
@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd])
def test_run_is_differentiable(name, derivative):
    case = problems.quad()

    @jax.jit
    def last_value(speed):
        method = with_x_step(made(name, case), 0.1 * speed)
        state, _ = bl.run(case.problem, method, start(method, case), steps=5)
        return case.value(state.x)

    step = 1e-6
    slope = (last_value(0.1 + step) - last_value(0.1 - step)) / (2 * step)
    np.testing.assert_allclose(derivative(last_value)(0.1), slope, rtol=1e-5)


@one_of_each_family
@every_method(but=("line_search",))
def test_divergence_ends_in_a_status(name):
    case = problems.quad()
    method = made(name, case, speed=1e4)
    if METHODS[name].normalised:  # its x steps are bounded
        method = eqx.tree_at(lambda m: m.y_update, method, updates.SGD(1e4))
    result = bl.solve(
        case.problem, method, case.x0, case.y0, steps=5000, log_every=200, progress=False
    )
    assert result.status.outcome is bl.Outcome.DIVERGED
    assert not result.status.ok
    assert "step" in result.status.advice
    assert np.isfinite(flat(result.x)).all()
    assert np.isfinite(flat(result.y)).all()
    assert result.stats.steps < 5000


@one_of_each_family
@every_method(but=("line_search",))
def test_price_of_a_step_is_what_it_calls(name):
    case = problems.quad()
    method = made(name, case)
    state = start(method, case)
    steps = getattr(method, "period", 1)  # of a method whose steps differ: the mean is declared
    with jax.disable_jit():
        for _ in range(steps):  # the first may hold a warm start
            state, _ = method.step(case.problem, state, Batch())
        with oracles.counting() as calls:
            for _ in range(steps):
                state, _ = method.step(case.problem, state, Batch())
    declared = {k: v for k, v in method.price(case.problem)._asdict().items() if v}
    assert {name: n / steps for name, n in calls.items()} == pytest.approx(declared)


@every_method
def test_unhandled_structure_is_refused_with_an_alternative(name):
    case = problems.quad()
    method = made(name, case)
    row = bl.sets.Polyhedron(A=jnp.ones((1, 3)), b=jnp.ones(1))
    problem = bl.Problem(case.problem.upper, case.problem.lower, lower_set=row)
    with pytest.raises(bl.methods.Unsupported, match=f"{name} cannot solve.*Polyhedron.*Methods"):
        bl.solve(problem, method, case.x0, case.y0, steps=1)


def test_a_refusal_names_methods_that_work():
    case = problems.lower_box()
    with pytest.raises(bl.methods.Unsupported, match=r"SOBA.*lower_set is a Box.*F2SA"):
        bl.solve(case.problem, bl.methods.SOBA(), case.x0, case.y0, steps=1)


def test_f2sa_solves_a_boxed_lower_level():
    case = problems.lower_box()
    method = bl.methods.F2SA(0.1, 0.4, 0.4, penalty=1000.0, lower_steps=20)
    state = run(method, case, 2000)
    assert distance(state.x, case.x_star) < 5e-3


def case_without_upper_set(case):
    return dataclasses.replace(case, problem=bl.Problem(case.problem.upper, case.problem.lower))


def central_differences(case, step=1e-5):
    x, unravel = jax.flatten_util.ravel_pytree(case.x0)
    value = jax.jit(lambda x: case.value(unravel(x)))
    return np.array([value(x + e) - value(x - e) for e in step * np.eye(x.size)]) / (2 * step)
