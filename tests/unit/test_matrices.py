"""Projections of dense matrices, and the hypergradient made of dense pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import distance

from bilevel import hypergrad, oracles, problems
from bilevel.linear import Dense, matrices

RNG = np.random.default_rng(0)
ROTATION = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
SPECTRA = {
    "above": (0.5, 1.0, 2.0, 3.0),
    "mixed": (-1.0, 0.1, 0.4, 2.0),
    "repeated": (0.1, 0.1, 2.0, 2.0),
    "zero": (0.0, 0.0, 0.0, 0.0),
}


def symmetric(spectrum):
    return jnp.asarray(ROTATION @ np.diag(spectrum) @ ROTATION.T)


@pytest.mark.parametrize("name", SPECTRA)
def test_a_floor_clips_eigenvalues(name):
    spectrum = np.array(SPECTRA[name])
    found = matrices.floor_eigenvalues(symmetric(spectrum), 0.3)
    np.testing.assert_allclose(found, symmetric(np.maximum(spectrum, 0.3)), atol=1e-14)


def test_a_floor_takes_the_symmetric_part():
    matrix, skew = symmetric(SPECTRA["above"]), jnp.asarray(RNG.normal(size=(4, 4)))
    found = matrices.floor_eigenvalues(matrix + skew - skew.T, 0.3)
    np.testing.assert_allclose(found, matrix, atol=1e-14)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (1, 3)])
@pytest.mark.parametrize("cap", [0.7, 100.0])
def test_a_cap_clips_singular_values(shape, cap):
    matrix = RNG.normal(size=shape)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    found = matrices.cap_norm(jnp.asarray(matrix), cap)
    np.testing.assert_allclose(found, left * np.minimum(values, cap) @ right, atol=1e-13)


def test_a_cap_leaves_zero_alone():
    assert not matrices.cap_norm(jnp.zeros((2, 3)), 1.0).any()


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["floor", "cap"])
def test_derivatives_are_those_of_central_differences(name, which):
    """Also where eigenvalues repeat, where the derivative of an eigenvector is not defined."""
    fn = {
        "floor": lambda m, b: matrices.floor_eigenvalues(m, 0.3 * b),
        "cap": lambda m, b: matrices.cap_norm(m, 1.2 * b),
    }[which]
    matrix, change, step = symmetric(SPECTRA[name]), jnp.asarray(RNG.normal(size=(4, 4))), 1e-6
    change, b = change + change.T, jnp.ones(())
    ahead, behind = fn(matrix + step * change, b + step), fn(matrix - step * change, b - step)
    _, slope = jax.jvp(fn, (matrix, b), (change, b))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), atol=1e-8)
    weight = jnp.asarray(RNG.normal(size=(4, 4)))
    pulled, by_b = jax.grad(lambda m, b: (weight * fn(m, b)).sum(), argnums=(0, 1))(matrix, b)
    np.testing.assert_allclose((pulled * change).sum() + by_b, (weight * slope).sum(), rtol=1e-10)


def test_projections_map_over_blocks():
    blocks = jnp.stack([symmetric(spectrum) for spectrum in SPECTRA.values()])
    for fn in (matrices.floor_eigenvalues, matrices.cap_norm):
        together = jax.vmap(fn, (0, None))(blocks, 0.3)
        alone = jnp.stack([fn(block, 0.3) for block in blocks])
        np.testing.assert_allclose(together, alone, atol=1e-14)


@pytest.mark.parametrize("problem", ["curv", "nested"])
def test_dense_pieces_give_the_implicit_hypergradient(problem):
    case = problems.ALL[problem]()
    x, y = case.x0, case.y0
    value, f_x, f_y = oracles.upper_grads(case.problem, x, y, None)
    H, J = hypergrad.curvature(case.problem, x, y, None)
    found = hypergrad.from_matrices(value, f_x, f_y, H, J)
    expected = hypergrad.implicit(case.problem, x, y, linear=Dense())
    assert distance(found.grad, expected.grad) < 1e-12
    assert distance(found.v, expected.v) < 1e-12
    assert jax.tree.structure(found.grad) == jax.tree.structure(x)


def test_matrices_of_half_precision_variables_are_float32():
    case = problems.shifted(jnp.float32)
    half = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)  # noqa: E731
    x, y = half(case.x0), half(case.y0)
    H, J = jax.eval_shape(lambda: hypergrad.curvature(case.problem, x, y, None))
    assert H.dtype == J.dtype == jnp.float32
    solved = matrices.solve(jnp.eye(H.shape[0], dtype=H.dtype), y)
    assert {leaf.dtype for leaf in jax.tree.leaves(solved)} == {jnp.dtype(jnp.bfloat16)}
