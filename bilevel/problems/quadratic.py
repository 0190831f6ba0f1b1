"""Two quadratics, deterministic or as a finite sum; x has two entries and y three.

g(x, y) = ½ y'Hy + y'(Cx + c)
f(x, y) = ½ y'Py + p'y + ½ x'Qx + q'x + x'Ry
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, PyTree, Scalar

from bilevel.problem import Problem
from bilevel.problems.case import Case

X_STAR = (-0.832321222976544, -0.035460414204436796)  # of `quad`: two linear equations


class Lower(NamedTuple):
    H: Array
    C: Array
    c: Array


class Upper(NamedTuple):
    P: Array
    p: Array
    Q: Array
    q: Array
    R: Array


def coefficients(dtype: Any = None) -> tuple[Upper, Lower]:
    """The coefficients of `quad`."""
    lower = Lower(
        H=jnp.array([[2.0, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 0.5]], dtype),
        C=jnp.array([[1.0, 0], [-0.5, 1], [0.3, -0.7]], dtype),
        c=jnp.array([0.1, -0.2, 0.3], dtype),
    )
    upper = Upper(
        P=jnp.diag(jnp.array([1.0, 2, 0.5], dtype)),
        p=jnp.array([-1.0, 0.5, 0.2], dtype),
        Q=0.5 * jnp.eye(2, dtype=dtype),
        q=jnp.array([0.3, -0.4], dtype),
        R=jnp.array([[0.1, 0, 0.2], [0, -0.1, 0.1]], dtype),
    )
    return upper, lower


def upper_loss(f: Upper, x: PyTree, y: PyTree, batch: Any) -> Scalar:
    """Rows of data, if there are any, replace the coefficients of the same names."""
    x, y = _vector(x), _vector(y)
    P, p, Q, q, R = _mean(f, batch)
    return y @ P @ y / 2 + p @ y + x @ Q @ x / 2 + q @ x + x @ R @ y


def lower_loss(g: Lower, x: PyTree, y: PyTree, batch: Any) -> Scalar:
    x, y = _vector(x), _vector(y)
    H, C, c = _mean(g, batch)
    return y @ H @ y / 2 + y @ (C @ x + c)


def solution_map(g: Lower, x: PyTree) -> Array:
    """`y*(x) = −H⁻¹(Cx + c)`, as a vector."""
    return -jnp.linalg.solve(g.H, g.C @ _vector(x) + g.c)


def quad(dtype: Any = None) -> Case:
    """The quadratic reference problem."""
    f, g = coefficients(dtype)
    return Case(
        name="quad",
        problem=Problem(Partial(upper_loss, f), Partial(lower_loss, g)),
        x0=jnp.array([1.0, -1.0], dtype),
        y0=jnp.zeros(3, dtype),
        y_star=Partial(solution_map, g),
        x_star=jnp.array(X_STAR, dtype),
        lower_mu=0.408031275459,
        lower_L=2.210580172322,
    )


def quad_noise(dtype: Any = None) -> Case:
    """`quad` as a finite sum: eight lower rows `H_i, C_i, c_i` and eight upper rows `p_i, q_i`.

    The means over all rows are the coefficients of `quad`, and the Hessian of every row is positive
    definite (eigenvalues in [0.2357, 2.3836]).
    """
    return replace(quad(dtype), name="quad_noise", data=_noisy_rows(dtype))


def _noisy_rows(dtype: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    f, g = coefficients(dtype)
    D = [
        jnp.diag(jnp.array([1.0, 0, 0], dtype)),
        jnp.diag(jnp.array([0, 1.0, 0], dtype)),
        jnp.diag(jnp.array([0, 0, 1.0], dtype)),
        jnp.array([[0, 1.0, 0], [1, 0, 0], [0, 0, 0]], dtype),
    ]
    signs_and_shifts = [((-1) ** i, i // 2) for i in range(8)]
    three, two = jnp.arange(3, dtype=f.p.dtype), jnp.arange(2, dtype=f.p.dtype)
    lower_rows = {
        "H": jnp.stack([g.H + 0.2 * s * D[j] for s, j in signs_and_shifts]),
        "C": jnp.stack([g.C + 0.2 * s * jnp.roll(g.C, j, axis=0) for s, j in signs_and_shifts]),
        "c": jnp.stack([g.c + 0.5 * s * jnp.cos(three + j) for s, j in signs_and_shifts]),
    }
    upper_rows = {
        "p": jnp.stack([f.p + 0.5 * s * jnp.sin(three + 1 + j) for s, j in signs_and_shifts]),
        "q": jnp.stack([f.q + 0.5 * s * jnp.cos(two + j) for s, j in signs_and_shifts]),
    }
    return upper_rows, lower_rows


def nested(dtype: Any = None) -> Case:
    """Two independent copies of `quad`, spread over trees with scalar, vector and matrix leaves.

    Ravelled, x is the x of `quad` twice and y the y of `quad` twice, and so are the answers; the
    hyper-objective is twice that of `quad`.
    """
    one, (f, g) = quad(dtype), coefficients(dtype)
    f, g = jax.tree.map(_twice, f), jax.tree.map(_twice, g)
    x0 = {"shift": jnp.zeros((), dtype), "slope": jnp.zeros(3, dtype)}
    y0 = {"bias": jnp.zeros((), dtype)}, [jnp.zeros(1, dtype), jnp.zeros((2, 2), dtype)]
    _, as_x = ravel_pytree(x0)
    _, as_y = ravel_pytree(y0)
    return replace(
        one,
        name="nested",
        problem=Problem(Partial(upper_loss, f), Partial(lower_loss, g)),
        x0=as_x(jnp.tile(one.x0, 2)),
        y0=y0,
        y_star=lambda x: as_y(solution_map(g, x)),
        x_star=as_x(jnp.array(2 * X_STAR, dtype)),
    )


def blocks(dtype: Any = None) -> Case:
    """Four lower problems that share x: row b of y (4 x 3) solves block b.

    Block b has `H + 0.3 b I`, `(1 − 0.2 b) C` and `c + 0.1 b`; the lower loss is the sum over
    blocks, the upper loss the mean over blocks of that of `quad`.
    """
    f, g = coefficients(dtype)
    every = _of_blocks(g)
    return Case(
        name="blocks",
        problem=Problem(Partial(_upper_of_blocks, f), Partial(_lower_of_blocks, every), blocks=4),
        x0=jnp.array([1.0, -1.0], dtype),
        y0=jnp.zeros((4, 3), dtype),
        y_star=lambda x: jax.vmap(solution_map, (0, None))(every, x),
        x_star=jnp.array([-0.7252136884414286, 0.16303725996654062], dtype),
        lower_mu=0.408031275459,
        lower_L=2.210580172322 + 0.9,
    )


def blocks_noise(dtype: Any = None) -> Case:
    """`blocks` as a finite sum: eight rows in each block (leading axes 4 x 8).

    Row i of block b is the block's coefficients plus what row i of `quad_noise` adds to `quad`.
    Without data, the losses are those of `blocks`.
    """
    _, g = coefficients(dtype)
    every = _of_blocks(g)._asdict()
    upper_rows, lower_rows = _noisy_rows(dtype)
    noise = {name: rows - getattr(g, name)[None] for name, rows in lower_rows.items()}
    lower = {
        name: jnp.stack([block[None] + noise[name] for block in every[name]]) for name in noise
    }
    upper = {name: jnp.stack(4 * [rows]) for name, rows in upper_rows.items()}
    return replace(blocks(dtype), name="blocks_noise", data=(upper, lower))


def _of_blocks(g: Lower) -> Lower:
    """The coefficients of the four blocks, stacked."""
    eye = jnp.eye(3, dtype=g.H.dtype)
    return Lower(
        H=jnp.stack([g.H + 0.3 * b * eye for b in range(4)]),
        C=jnp.stack([(1 - 0.2 * b) * g.C for b in range(4)]),
        c=jnp.stack([g.c + 0.1 * b for b in range(4)]),
    )


def _upper_of_blocks(f: Upper, x: Array, y: Array, batch: Any) -> Scalar:
    """The mean over the given blocks; rows of data have axes block and sample."""
    return jnp.mean(jax.vmap(upper_loss, (None, None, 0, 0))(f, x, y, batch))


def _lower_of_blocks(every: Lower, x: Array, y: Array, batch: Any) -> Scalar:
    """The sum over the given blocks; without data, over all."""
    g = every if batch is None else jax.vmap(lambda rows: _mean(every, rows))(batch)
    return jnp.sum(jax.vmap(lower_loss, (0, None, 0, None))(g, x, y, None))


def _mean(coefficients: Any, rows: dict[str, Array] | None) -> Any:
    means = {name: row.mean(axis=0) for name, row in (rows or {}).items()}
    return coefficients._replace(**means)


def _vector(tree: PyTree) -> Array:
    return ravel_pytree(tree)[0]


def _twice(a: Array) -> Array:
    return jnp.tile(a, 2) if a.ndim == 1 else jnp.kron(jnp.eye(2, dtype=a.dtype), a)
