"""Arithmetic on trees: the formulas, and the dtypes it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import trees

A = {"u": jnp.array([1.0, 2.0]), "w": (jnp.array(3.0),)}
B = {"u": jnp.array([0.5, -1.0]), "w": (jnp.array(4.0),)}
EMPTY = {"u": (), "w": None}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize(
    ("result", "leaf"),
    [
        (trees.add(A, B), lambda a, b: a + b),
        (trees.sub(A, B), lambda a, b: a - b),
        (trees.scale(0.5, A), lambda a, b: 0.5 * a),
        (trees.axpy(0.5, A, B), lambda a, b: 0.5 * a + b),
        (trees.lerp(A, B, 0.25), lambda a, b: 0.75 * a + 0.25 * b),
        (trees.where(jnp.array(True), A, B), lambda a, b: a),
        (trees.where(jnp.array(False), A, B), lambda a, b: b),
        (trees.zeros_like(A), lambda a, b: 0 * a),
    ],
    ids=["add", "sub", "scale", "axpy", "lerp", "where", "where not", "zeros_like"],
)
def test_leaf_by_leaf(result, leaf):
    same(result, jax.tree.map(leaf, A, B))


def test_dot_norm_and_size_run_over_all_leaves():
    assert trees.dot(A, B) == 1 * 0.5 - 2 * 1 + 3 * 4
    assert trees.norm(A) == np.sqrt(14)
    assert trees.size(A) == 3


def test_the_derivative_of_the_norm_at_zero_is_zero():
    same(jax.grad(trees.norm)(trees.zeros_like(A)), trees.zeros_like(A))


def test_a_full_weight_takes_the_new_value_exactly():
    tiny = jnp.array([1e-3, 0.1])
    same(trees.lerp(jnp.array([1e9, -7.0]), tiny, 1.0), tiny)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("factor", [0.5, jnp.float64(0.5), jnp.float32(0.5)], ids=str)
def test_dtypes_are_those_of_the_tree(dtype, factor):
    a = trees.map(lambda leaf: leaf.astype(dtype), A)
    for result in (trees.scale(factor, a), trees.axpy(factor, a, a), trees.lerp(a, a, factor)):
        assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype(dtype)}


def test_a_factor_near_one_is_not_rounded_to_one_in_half_precision():
    ones = jnp.ones(1000, jnp.bfloat16)
    assert trees.norm(trees.axpy(-0.999, ones, ones)) < 0.002 * trees.norm(ones)
    assert trees.norm(trees.axpy(-0.999, ones, ones)) > 0


def test_half_precision_is_summed_in_single():
    assert trees.dot(jnp.ones(1000, jnp.bfloat16), jnp.ones(1000, jnp.bfloat16)) == 1000


def test_mixed_dtypes_keep_each_its_own_and_widen_to_one():
    mixed = (jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.float32))
    assert [leaf.dtype for leaf in trees.scale(jnp.float64(2), mixed)] == [
        jnp.bfloat16,
        jnp.float32,
    ]
    assert [leaf.dtype for leaf in trees.widen(mixed)] == [jnp.float32, jnp.float32]
    assert trees.widest(mixed) == jnp.float32


def test_python_numbers_are_leaves():
    assert trees.axpy(2.0, 3.0, 4.0) == 10.0


def test_weak_types_become_strong():
    weak = jnp.asarray(1.0)
    assert weak.weak_type
    assert not trees.copy(weak).weak_type
    assert not trees.zeros_like(weak).weak_type


def test_a_copy_has_buffers_of_its_own():
    copied = trees.copy(A)
    same(copied, A)
    assert copied["u"].unsafe_buffer_pointer() != A["u"].unsafe_buffer_pointer()


def test_finiteness_looks_at_floats_only():
    assert trees.all_finite({"count": jnp.array(3), **A})
    assert not trees.all_finite((A, jnp.array([1.0, jnp.nan])))


def test_empty_trees():
    assert trees.norm(EMPTY) == 0
    assert trees.size(EMPTY) == 0
    assert trees.all_finite(EMPTY)
    assert trees.axpy(0.5, EMPTY, EMPTY) == EMPTY
    assert trees.random_like(jax.random.key(0), EMPTY) == EMPTY
