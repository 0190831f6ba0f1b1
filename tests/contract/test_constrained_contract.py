"""What holds for every method of CONSTRAINED on its problem."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import METHODS, distance, flat, same_bits
from constrained_cases import CONSTRAINED

import bilevel as bl
from bilevel import oracles
from bilevel.methods.base import all_methods
from bilevel.problem import Batch

every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CONSTRAINED]
)
# A step that holds solves of unknown length takes long to compile.
solves_later = pytest.mark.slow(unless=lambda name: not CONSTRAINED[name].adaptive)
# One that projects, one by penalties, one with multipliers.
a_few = pytest.mark.slow(unless=lambda name: name in {"AiPOD", "VPBGD", "BLOCC"})


def begun(case, method, seed=0):
    return method.init(case.problem, case.x0, case.y0, key=jax.random.key(seed))


def run(name, case, steps, *, seed=0, state=None):
    method = CONSTRAINED[name].method(1.0)
    state = begun(case, method, seed) if state is None else state
    return cases.run(method, case, steps, state=state)


def test_every_method_has_a_row():
    ours = {m.__name__ for m in all_methods() if m.__module__.startswith("bilevel.")}
    assert ours == METHODS.keys() | CONSTRAINED.keys()


@every
def test_the_answer_is_found(name):
    row, case = CONSTRAINED[name], CONSTRAINED[name].case()
    state = run(name, case, row.steps)
    assert distance(state.x, case.x_star) < row.tol


@pytest.mark.slow(unless=lambda dtype: dtype == jnp.float64)
@every
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_structure_shapes_and_dtypes_are_kept(name, dtype):
    case = CONSTRAINED[name].case()
    method = CONSTRAINED[name].method(1.0)
    x0, y0 = jax.tree.map(lambda a: a.astype(dtype), (case.x0, case.y0))
    state = method.init(case.problem, x0, y0, key=jax.random.key(0))
    new, info = jax.eval_shape(method.step, case.problem, state, Batch())
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for old, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert (old.shape, old.dtype, leaf.weak_type) == (leaf.shape, leaf.dtype, False)
    assert all(jnp.shape(value) == () for value in info.values())
    assert {"upper", "hypergrad_norm", "lower_grad_norm"} <= info.keys()


@solves_later
@every
def test_two_halves_equal_one_run(name):
    case = CONSTRAINED[name].case()
    whole = run(name, case, 20)
    half = run(name, case, 10)
    assert same_bits(whole, run(name, case, 10, state=half))


@solves_later
@every
def test_a_step_may_donate_its_state(name):
    case = CONSTRAINED[name].case()
    method = CONSTRAINED[name].method(1.0)
    state = begun(case, method)
    step = jax.jit(lambda s: method.step(case.problem, s, Batch())[0], donate_argnums=0)
    state = step(step(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((case.x0, case.y0)))


@a_few
@every
def test_vmap_over_step_sizes(name):
    case = CONSTRAINED[name].case()
    several = [CONSTRAINED[name].method(speed) for speed in (1.0, 0.5)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)

    def final(method):
        return bl.run(case.problem, method, begun(case, method), steps=5)[0].x

    together = jax.vmap(final)(stacked)
    alone = jnp.stack([jax.jit(final)(method) for method in several])
    np.testing.assert_allclose(together, alone, rtol=1e-7, atol=1e-9)
    assert distance(together[0], together[1]) > 0


@solves_later
@every
def test_seeds_matter_where_it_draws(name):
    case = CONSTRAINED[name].case()
    one, again, other = (run(name, case, 10, seed=seed) for seed in (0, 0, 1))
    assert same_bits(one, again)
    assert (distance(one.x, other.x) > 0) == CONSTRAINED[name].random


@every
def test_price_of_a_step_is_what_it_calls(name):
    if CONSTRAINED[name].adaptive:
        pytest.skip("its steps hold solves of unknown length")
    case = CONSTRAINED[name].case()
    method = CONSTRAINED[name].method(1.0)
    with jax.disable_jit(), oracles.counting() as calls:
        method.step(case.problem, begun(case, method), Batch())
    declared = {k: v for k, v in method.price(case.problem)._asdict().items() if v}
    assert dict(calls) == pytest.approx(declared)


@a_few
@every
def test_solve_ends_well_and_tells_what_was_reached(name):
    row, case = CONSTRAINED[name], CONSTRAINED[name].case()
    result = bl.solve(
        case.problem,
        row.method(1.0),
        case.x0,
        case.y0,
        steps=20,
        progress=False,
        key=jax.random.key(0),
    )
    assert np.isfinite(flat((result.x, result.y))).all()
    outcome, violation = result.status.outcome, result.certificate.violation
    if outcome is bl.Outcome.INFEASIBLE:  # 20 steps of a penalty or dual method may end outside
        assert violation > 1e-3
        assert "violated by" in result.status.advice
    else:
        assert result.status.ok
        assert result.certificate.feasible


@every
def test_what_it_does_not_handle_is_refused_by_name(name):
    row, case = CONSTRAINED[name], CONSTRAINED[name].case()
    problem = bl.Problem(case.problem.upper, case.problem.lower, lower_step=lambda x, y, batch: y)
    with pytest.raises(bl.methods.Unsupported, match=f"{name} cannot solve this problem"):
        row.method(1.0).check(problem)
