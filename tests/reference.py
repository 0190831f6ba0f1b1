"""QUAD, CURV and SCALAR: small problems whose hypergradients are known to many digits."""

import jax.numpy as jnp
import numpy as np

from bilevel import Problem

H = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.5]])
C = np.array([[1.0, 0.0], [-0.5, 1.0], [0.3, -0.7]])
c = np.array([0.1, -0.2, 0.3])
P = np.diag([1.0, 2.0, 0.5])
p = np.array([-1.0, 0.5, 0.2])
q = np.array([0.3, -0.4])
R = np.array([[0.1, 0.0, 0.2], [0.0, -0.1, 0.1]])

X = np.array([1.0, -1.0])  # where the reference numbers are taken
STEP = 1 / 2.7106  # at most 1/L for CURV at X


def _like(y, *arrays):
    """The constants in the dtype of y, so that one problem serves every precision."""
    return (jnp.asarray(a, y.dtype) for a in arrays)


def _quadratic(x, y):
    h, cross, lin = _like(y, H, C, c)
    return y @ h @ y / 2 + y @ (cross @ x + lin)


def quad() -> Problem:
    def upper(x, y, batch):
        a, b, d, e = _like(y, P, p, q, R)
        return y @ a @ y / 2 + b @ y + x @ x / 4 + d @ x + x @ (e @ y)

    return Problem(upper, lambda x, y, batch: _quadratic(x, y))


def quad_solution(x):
    """`y*(x)` in closed form."""
    return -jnp.linalg.solve(H, C @ x + c)


QUAD_GRAD = np.array([10.83868992524, -16.897800719908])  # ∇l at X


def curv() -> Problem:
    def lower(x, y, batch):
        w = y + x[jnp.array([0, 1, 0])]
        return _quadratic(x, y) + jnp.sum(jnp.logaddexp(w, -w) - np.log(2.0)) / 2

    def upper(x, y, batch):
        (target,) = _like(y, np.array([1.0, -1.0, 0.5]))
        return (
            jnp.sum((y - target) ** 2) / 2 + jnp.sum(jnp.sin(y)) / 2 + x @ x / 4 + x[0] * y[1]
        )

    return Problem(upper, lower)


CURV_Y = np.array([-1.108231654387, 2.340737630979, -2.612732276556])
CURV_V = np.array([-1.938941360661, 5.901951488486, -8.238331128664])
CURV_B = np.array([-1.885109291627, 3.992691081441, -3.544423590314])  # ∇_y f
CURV_GRAD = np.array([11.766004712709, -12.876659777570])


def scalar() -> Problem:
    """`y* = x` and `∇l = x − 1`."""
    return Problem(lambda x, y, batch: (y - 1) ** 2 / 2, lambda x, y, batch: (y - x) ** 2 / 2)
