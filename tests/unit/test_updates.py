"""Updates against optax, and what a step size may change: not the dtype, not the compiled code."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import schedules, trees, updates

TREE = {"u": jnp.array([1.0, -2.0]), "w": jnp.array([[0.5]])}


def directions(k, tree=TREE):
    """Some direction that changes with the step."""
    return trees.map(lambda leaf: jnp.cos(leaf + k).astype(leaf.dtype), tree)


def trajectory(update, tree=TREE, steps=5):
    memory = update.init(tree)
    for k in range(steps):
        tree, memory = update.step(directions(k, tree), memory, tree, k)
    return tree


def optax_trajectory(transformation, tree=TREE, steps=5):
    memory = transformation.init(tree)
    for k in range(steps):
        change, memory = transformation.update(directions(k, tree), memory, tree)
        tree = optax.apply_updates(tree, change)
    return tree


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (updates.SGD(0.1), optax.sgd(0.1)),
        (updates.Momentum(0.1, 0.8), optax.sgd(0.1, momentum=0.8)),
        (updates.Momentum(0.1, 0.8, nesterov=True), optax.sgd(0.1, momentum=0.8, nesterov=True)),
        (updates.Optax(optax.adam(0.1)), optax.adam(0.1)),
        (
            updates.SGD(schedules.Polynomial(0.1, 0.5)),
            optax.sgd(lambda k: 0.1 / jnp.sqrt(k.astype(float) + 1)),
        ),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "schedule"],
)
def test_equal_to_optax(ours, theirs):
    with jax.numpy_dtype_promotion("standard"):
        expected = optax_trajectory(theirs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), trajectory(ours), expected
    )


def test_a_number_of_an_optax_factory_may_be_a_schedule():
    rates = optax.warmup_cosine_decay_schedule(0.0, 0.3, 2, 6)
    with jax.numpy_dtype_promotion("standard"):
        expected = optax_trajectory(optax.adamw(rates, weight_decay=0.1), steps=7)
    rate = schedules.WarmUp(schedules.Cosine(0.3, 4), 2)
    found = trajectory(updates.FromOptax(optax.adamw, rate, weight_decay=0.1), steps=7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    assert "WarmUp(Cosine(" in repr(updates.FromOptax(optax.adam, rate))


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_warm_up_then_decay_as_transformers_does(kind):
    total, warm, rate = 12, 4, 0.5
    after = {
        "constant": schedules.Constant(rate),
        "linear": schedules.Linear(rate, -rate / (total - warm)),
        "cosine": schedules.Cosine(rate, total - warm),
    }
    left = {
        "constant": lambda share: 1.0,
        "linear": lambda share: 1 - share,
        "cosine": lambda share: 0.5 * (1 + np.cos(np.pi * share)),
    }
    schedule = schedules.WarmUp(after[kind], warm)
    found = [float(schedule(k)) for k in range(total + 1)]
    decay = [rate * left[kind]((k - warm) / (total - warm)) for k in range(warm, total + 1)]
    expected = [rate * k / warm for k in range(warm)] + decay
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


UPDATES = {
    "sgd": updates.SGD,
    "momentum": updates.Momentum,
    "nesterov": lambda a: updates.Momentum(a, jnp.float64(0.9), nesterov=True),
    "adam": lambda a: updates.Optax(optax.adam(0.1)),
}


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_a_double_step_size_keeps_the_dtype(name, dtype):
    update = UPDATES[name](jnp.float64(0.1))
    tree = trees.map(lambda leaf: leaf.astype(dtype), TREE)
    memory = update.init(tree)
    moved, after = update.step(directions(0, tree), memory, tree, jnp.array(0))
    assert [leaf.dtype for leaf in jax.tree.leaves(moved)] == [dtype] * 2
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, memory)


def test_slow_momentum_in_half_precision_does_not_become_none():
    update = updates.Momentum(1.0, 0.999)
    tree = jnp.zeros((), jnp.bfloat16)
    _, memory = update.step(tree, jnp.full_like(tree, 1.0), tree, 0)
    for _ in range(100):
        _, memory = update.step(tree - 1, memory, tree, 0)
    assert memory < -50


def counted(step):
    """The function compiled, and the list of its traces."""
    traces = []

    def wrapped(*args):
        traces.append(1)
        return step(*args)

    return jax.jit(wrapped), traces


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov"])
def test_a_new_step_size_compiles_nothing(name):
    step, traces = counted(lambda update, d, m, tree, k: update.step(d, m, tree, k))
    for size in (0.1, 0.2, 3, 1):
        update = UPDATES[name](size)
        step(update, TREE, update.init(TREE), TREE, jnp.array(0))
    assert len(traces) == 1


def test_weak_trees_compile_once():
    update, tree = updates.Momentum(0.1), jnp.asarray(1.0)
    tree, memory = trees.copy(tree), update.init(tree)
    step, traces = counted(update.step)
    for _ in range(3):
        tree, memory = step(tree, memory, tree, jnp.array(0))
    assert len(traces) == 1


def test_one_optax_object_compiles_once():
    update = updates.as_update(optax.adam(0.1))
    step, traces = counted(lambda update, d, m, tree: update.step(d, m, tree, 0))
    memory = update.init(TREE)
    for _ in range(3):
        _, memory = step(update, TREE, memory, TREE)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov"])
def test_a_sweep_over_step_sizes_is_one_vmap(name):
    sizes = jnp.array([0.1, 0.2, 0.3])
    swept = jax.vmap(lambda size: trajectory(UPDATES[name](size)))(sizes)
    for i, size in enumerate(sizes):
        one = trajectory(UPDATES[name](size))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-14), swept, one)


def test_a_sweep_over_decays():
    def end(decay):
        return trajectory(updates.Momentum(0.1, decay))

    swept = jax.vmap(end)(jnp.array([0.5, 0.9]))
    np.testing.assert_allclose(swept["u"][1], end(0.9)["u"], rtol=1e-14)


def test_steps_can_be_differentiated_with_respect_to_the_step_size():
    def end(size):
        return trajectory(updates.Momentum(size), steps=2)["w"].sum()

    slope = (end(0.1 + 1e-6) - end(0.1 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(end)(0.1), slope, rtol=1e-8)


def test_an_empty_tree_does_not_move():
    assert trajectory(updates.SGD(0.1), {}) == trajectory(updates.Momentum(0.1), {}) == {}


# --- schedules ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (schedules.Constant(0.3), {0: 0.3, 7: 0.3}),
        (schedules.Polynomial(2.0, 0.5), {0: 2.0, 3: 1.0, 15: 0.5}),
        (schedules.Polynomial(2.0, -1.0, 4.0), {0: 8.0, 6: 20.0}),
        (schedules.Linear(1.0, 0.25), {0: 1.0, 4: 2.0}),
        (schedules.Cosine(1.0, 100, 0.2), {0: 1.0, 50: 0.6, 100: 0.2, 999: 0.2}),
        (schedules.as_schedule(lambda k: 1.0 / (k + 1)), {0: 1.0, 3: 0.25}),
    ],
    ids=["constant", "polynomial", "growing", "linear", "cosine", "function"],
)
@pytest.mark.parametrize("count", [int, jnp.asarray], ids=["int", "array"])
def test_values(schedule, values, count):
    for k, value in values.items():
        np.testing.assert_allclose(schedule(count(k)), value, rtol=1e-15)


@pytest.mark.parametrize(
    ("schedule", "value"),
    [
        (schedules.Constant(1), 1.0),
        (schedules.Polynomial(1, 0.5), 0.5),
        (schedules.Linear(0, 0.5), 1.5),
        (schedules.Cosine(1, 6), 0.5),
    ],
    ids=["constant", "polynomial", "linear", "cosine"],
)
def test_whole_numbers_are_read_as_floats(schedule, value):
    np.testing.assert_allclose(schedule(3), value, rtol=1e-15)


def test_an_optax_schedule_under_strict_promotion():
    warm = optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100)
    np.testing.assert_allclose(schedules.as_schedule(warm)(jnp.array(5)), 0.05)


def test_a_function_may_carry_arrays():
    decay = jax.tree_util.Partial(lambda base, k: base**k, jnp.array(0.5))
    step, traces = counted(lambda schedule, k: schedule(k))
    assert step(schedules.as_schedule(decay), 2) == 0.25
    assert step(schedules.as_schedule(jax.tree_util.Partial(decay.func, jnp.array(0.1))), 2) < 0.011
    assert len(traces) == 1


def test_the_first_weight_of_an_average_is_one():
    schedule = schedules.Constant(0.1)
    assert schedules.first_one(schedule, 0) == 1
    assert schedules.first_one(schedule, 1) == 0.1


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (updates.as_update(0.1), "SGD(0.1)"),
        (updates.SGD(schedules.Polynomial(0.1, 0.6)), "SGD(0.1·(k+1)^-0.6)"),
        (updates.SGD(schedules.Linear(1, 0.5)), "SGD(1+0.5·k)"),
        (updates.SGD(schedules.Cosine(0.1, 50)), "SGD(Cosine(0.1 to 0 in 50))"),
        (updates.Momentum(0.1), "Momentum(0.1, decay=0.9)"),
        (updates.Momentum(0.1, nesterov=True), "Momentum(0.1, decay=0.9, nesterov=True)"),
        (updates.SGD(jnp.ones(3)), "SGD(<3>)"),
        (updates.as_update(optax.adam(0.1)), "Optax(chain)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reprs_read_like_the_call(thing, text):
    assert repr(thing) == text


def test_a_traced_step_size_can_be_printed():
    assert jax.eval_shape(lambda a: len(repr(updates.SGD(a))) * a, 1.0).shape == ()
    assert repr(jax.eval_shape(lambda: updates.SGD(0.1))) == "SGD(<traced>)"


def test_from_optax_equals_optax_and_compiles_once():
    traces = []

    @jax.jit
    def step(update, memory, tree):
        traces.append(1)
        return update.step({"a": tree["a"] ** 2}, memory, tree, 0)

    def run(update):
        tree = {"a": jnp.array([1.0, -2.0], jnp.float32)}
        memory = update.init(tree)
        for _ in range(3):
            tree, memory = step(update, memory, tree)
        return tree["a"]

    ours = run(updates.FromOptax(optax.adam, 0.1, b1=0.8))
    assert len(traces) == 1
    run(updates.FromOptax(optax.adam, 0.2, b1=0.9))
    assert len(traces) == 1
    np.testing.assert_allclose(ours, run(updates.Optax(optax.adam(0.1, b1=0.8))), rtol=1e-6)
    assert repr(updates.FromOptax(optax.adam, 0.1, b1=0.8)) == "adam(0.1, b1=0.8)"
    assert repr(updates.FromOptax(partial(optax.adam, b1=0.8), 0.1)) == "partial(0.1)"


def test_from_optax_sweeps_by_vmap():
    tree = jnp.array([1.0, -2.0])

    def moved(step_size):
        update = updates.FromOptax(optax.adam, step_size)
        return update.step(tree, update.init(tree), tree, 0)[0]

    together = jax.vmap(moved)(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(together, jnp.stack([moved(0.1), moved(0.2)]))


def test_each_part_moves_by_an_update_of_its_own():
    adam = updates.Optax(optax.adam(0.1))
    alone = trajectory(updates.SGD(0.5)), trajectory(adam)
    memory = updates.Each((updates.SGD(0.5), adam)).init((TREE, TREE))
    parts = TREE, TREE
    for k in range(5):
        down = tuple(directions(k, part) for part in parts)
        parts, memory = updates.Each((updates.SGD(0.5), adam)).step(down, memory, parts, k)
    for found, expected in zip(jax.tree.leaves(parts), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(found, expected)
