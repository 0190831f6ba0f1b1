"""Settings, sets and options that make no sense are refused where they are written."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.methods import F2SA, MAID, SOBA, AmIGO
from bilevel.schedules import Polynomial

HUGE = 10**400
REFUSED = {
    "a negative step": (lambda: SOBA(x_update=-0.1), "step_size is -0.1"),
    "no number": (lambda: SOBA(x_update=float("nan")), "step_size is nan"),
    "an infinite step": (lambda: SOBA(x_update=jnp.inf), "step_size is inf"),
    "one of a sweep": (lambda: SOBA(x_update=jnp.array([0.1, -0.1])), "step_size is"),
    "a negative schedule": (lambda: SOBA(x_update=Polynomial(-1.0, 0.5)), "step_size is -1"),
    "a factory": (lambda: SOBA(x_update=optax.adam), "optax.adam is called first"),
    "a class": (lambda: SOBA(x_update=bl.updates.SGD), "the class SGD is no step size"),
    "a function of nothing": (lambda: SOBA(x_update=lambda: 0.1), "is no schedule"),
    "a function that returns text": (lambda: SOBA(x_update=lambda k: "a"), "returned str"),
    "text": (lambda: SOBA(x_update="0.1"), "is no step size"),
    "a truth value": (lambda: SOBA(x_update=True), "a real number is needed"),
    "a complex number": (lambda: SOBA(x_update=1j), "a real number is needed"),
    "400 digits": (lambda: SOBA(x_update=HUGE), "more than 20 digits"),
    "a negative radius": (lambda: SOBA(radius=-1.0), "radius is -1"),
    "a negative penalty": (lambda: F2SA(penalty=-1.0), "penalty is -1"),
    "a decay above 1": (lambda: bl.updates.Momentum(0.1, decay=1.5), "decay is 1.5"),
    "a negative tolerance": (lambda: bl.linear.CG(10, tol=-1.0), "tol is -1"),
    "400 digits of steps": (lambda: bl.linear.CG(-HUGE), "steps is a number of more than 20"),
    "text for a choice": (lambda: F2SA(common_samples="no"), "True or False is needed"),
    "half a trial": (lambda: MAID(trials=1.5), "trials is 1.5"),
    "a curvature of 0": (lambda: MAID(mu=0.0), "mu is 0; a positive number is needed"),
    "a first step of NaN": (lambda: MAID(step_size=jnp.nan), "step_size is nan"),
    "a negative constant": (lambda: MAID(cross=-1.0), "cross is -1"),
    "text for a constant": (lambda: MAID(upper_L="1"), "'1' is no number"),
    "a class for a solver": (lambda: AmIGO(linear=bl.linear.CG), "create one: CG"),
    "an object for a factory": (lambda: bl.updates.FromOptax(optax.adam(0.1)), "a factory"),
    "a bound without a number": (lambda: bl.sets.Box(jnp.nan, 1.0), "lo contains a NaN"),
    "a row without a number": (
        lambda: bl.sets.Polyhedron(jnp.full((1, 2), jnp.nan), jnp.ones(1)), "A contains a NaN",
    ),
    "a center without a number": (lambda: bl.sets.Ball(1.0, jnp.array([jnp.nan])), "center"),
    "400 digits for a bound": (lambda: bl.sets.Box(HUGE), "more than 20 digits"),
    "text for a bound": (lambda: bl.sets.Box("a"), "is no number"),
    "whole numbers that do not fit": (lambda: data_in_32_bits(np.full((4, 2), 2**40)), "int32"),
    "numbers that do not fit": (lambda: data_in_32_bits(np.full((4, 2), 1e300)), "infinite"),
    "words as data": (lambda: bl.Data(np.array(["a"])), "numbers are needed"),
}  # fmt: skip


def data_in_32_bits(array):
    with jax.enable_x64(False):
        bl.Data(array)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_where_it_is_written(name):
    wrong, told = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=told) as caught:
        wrong()
    assert len(str(caught.value)) < 400


def test_numbers_may_be_traced_and_swept():
    swept = jax.vmap(lambda step: SOBA(x_update=step))(jnp.array([0.1, 0.2]))
    assert swept.x_update.step_size.value.shape == (2,)
    assert repr(SOBA(x_update=optax.cosine_decay_schedule(0.1, 10)).x_update) == "SGD(schedule)"


def square(x, y, batch):
    return jnp.sum((x - y) ** 2) + jnp.sum(x**2)


PROBLEM = bl.Problem(square, square)
START = {"x0": jnp.ones(2), "y0": jnp.zeros(2)}


def constrained(h):
    return bl.Problem(square, square, lower_set=bl.sets.Coupled(h))


RUNS = {
    "a negative tol": ({"tol": -1.0}, "tol is -1"),
    "tol as text": ({"tol": "0.1"}, "tol is '0.1'"),
    "more steps than are counted": ({"steps": 10**12}, "at most 2147483647"),
    "400 digits of steps": ({"steps": HUGE}, "more than 20 digits"),
    "one callback": ({"callbacks": print}, "a list of functions"),
    "a callback of two": ({"callbacks": [lambda step, row: None]}, "callback"),
    "a callback's class": ({"callbacks": [dict]}, "callbacks holds"),
    "a metric named like an option": ({"metrics": {"last": lambda x, y: 0.0}}, "keep="),
    "a metric named by a number": ({"metrics": {1: lambda x, y: 0.0}}, "name 1"),
    "text for a truth value": ({"certify": "no"}, "certify is 'no'"),
    "a number for a key": ({"key": 0}, "key is 0"),
    "several keys": ({"key": jax.random.split(jax.random.key(0), 2)}, "one of them"),
    "no name of a folder": ({"checkpoint": ""}, "the name of a folder"),
    "an address": ({"checkpoint": "gs://bucket/run"}, "an address"),
    "a number for a folder": ({"checkpoint": 3}, "checkpoint is 3"),
    "nothing to keep": ({"checkpoint": bl.Checkpoint("folder", keep=0)}, "keep is 0"),
    "time without a number": (
        {"checkpoint": bl.Checkpoint("folder", seconds=float("nan"))}, "seconds is nan",
    ),
    "an integer start of 400 digits": ({"x0": HUGE}, "more than 20 digits"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_refused_before_it_compiles(name):
    wrong, told = RUNS[name]
    with pytest.raises((TypeError, ValueError), match=told):
        bl.solve(PROBLEM, SOBA(), **{**START, **wrong}, progress=False)


CONSTRAINTS = {
    "nothing": (lambda x, y: None, "None"),
    "a truth value": (lambda x, y: y > x, "bool"),
    "a complex number": (lambda x, y: y * 1j, "complex"),
    "text": (lambda x, y: "y <= x", "does not fit"),
}


@pytest.mark.parametrize("method", [None, bl.methods.BLOCC()], ids=["chosen", "given"])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_constraint_returns_real_numbers(name, method):
    h, told = CONSTRAINTS[name]
    with pytest.raises((TypeError, ValueError), match=told):
        bl.solve(constrained(h), method, **START, progress=False)


def test_a_declared_hypergradient_has_the_shape_of_x():
    problem = bl.Problem(square, square, hypergradient=lambda x, y, batch: jnp.sum(x))
    with pytest.raises(ValueError, match=r"hypergradient returned .*a tree like x"):
        bl.solve(problem, AmIGO(), **START, progress=False)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
@pytest.mark.parametrize("method", [None, SOBA()], ids=["chosen", "given"])
def test_inside_a_transformation_the_pure_loop_is_named(transform, method):
    def outcome(x0):
        return bl.solve(PROBLEM, method, x0=x0, y0=START["y0"], progress=False).x.sum()

    with pytest.raises(TypeError, match=r"bl\.run"):
        transform(outcome)(jnp.ones((2, 2)) if transform is jax.vmap else jnp.ones(2))
