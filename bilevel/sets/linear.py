"""Linear equations and inequalities."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.fields import as_number
from bilevel.sets.base import AbstractSet, Constraints, Rows, Traits, as_entry, is_array, ravel


class Affine(AbstractSet):
    """Solutions of linear equations: `E z = d`, z ravelled. Dependent rows are allowed.

    Args:
        E: k x n matrix, n the number of entries of z.
        d: k numbers.

    Raises:
        ValueError: the shapes do not match.
    """

    E: Float[Array, "k n"] = eqx.field(converter=as_number)
    d: Float[Array, " k"] = eqx.field(converter=as_number)

    def traits(self):
        return Traits(inequalities=False, equalities=True)

    def __check_init__(self):
        _check_rows("Affine", "E", self.E, "d", self.d)

    def project(self, z, x=None):
        vector, unravel = ravel(z)
        return unravel(_onto_affine(vector, *_sized("Affine", self.E, self.d, vector)))

    def constraints(self, z, x=None):
        vector, _ = ravel(z)
        E, d = _sized("Affine", self.E, self.d, vector)
        return Constraints((), E @ vector - d)


class Polyhedron(AbstractSet):
    """Linear constraints: `A z <= b` and `E z = d`, z ravelled; the set is Y(x) when they move.

    Projects by a small interior-point solve (`qpax`; n and m up to a few hundred) that finds the
    active rows, then exactly onto those, so values and derivatives (in z and, through the entries,
    in x) are those of the active face. The result is NaN when the solve breaks down.

    Args:
        A, b: m x n matrix and m numbers, n the number of entries of z; an infinite b switches its
            row off.
        E, d: k x n matrix with independent rows, and k numbers.
            Any of the four may be a function of x that returns it.

    Raises:
        ValueError: one of a pair without the other, no pair at all, or shapes that do not match.
        ImportError: on `project` with inequalities, when qpax is not installed.
    """

    A: Array | Callable | None = eqx.field(converter=as_entry, default=None)
    b: Array | Callable | None = eqx.field(converter=as_entry, default=None)
    E: Array | Callable | None = eqx.field(converter=as_entry, default=None)
    d: Array | Callable | None = eqx.field(converter=as_entry, default=None)

    @property
    def simple(self) -> bool:
        return False

    def traits(self):
        moves = any(callable(entry) for entry in (self.A, self.b, self.E, self.d))
        return Traits(moves=moves, inequalities=self.A is not None, equalities=self.E is not None)

    def __check_init__(self):
        pairs = (("A", self.A, "b", self.b), ("E", self.E, "d", self.d))
        for left, matrix, right, vector in pairs:
            if (matrix is None) != (vector is None):
                given, missing = (left, right) if vector is None else (right, left)
                raise ValueError(f"Polyhedron: {given} is given without {missing}.")
            _check_rows("Polyhedron", left, matrix, right, vector)
        if self.A is None and self.E is None:
            raise ValueError("Polyhedron: give A and b, or E and d, or all four.")
        columns = {entry.shape[1] for entry in (self.A, self.E) if isinstance(entry, jax.Array)}
        if len(columns) > 1:
            raise ValueError(
                "Polyhedron: A and E have different numbers of columns; both need one for every "
                "entry of the variable."
            )

    def project(self, z, x=None):
        vector, unravel = ravel(z)
        return unravel(onto_rows(vector, self.rows(z, x)))

    def constraints(self, z, x=None):
        vector, _ = ravel(z)
        inequalities = self._half(self.A, self.b, vector, x)
        equalities = self._half(self.E, self.d, vector, x)
        return Constraints(
            () if inequalities is None else inequalities[0] @ vector - inequalities[1],
            () if equalities is None else equalities[0] @ vector - equalities[1],
        )

    def _half(self, matrix, right, vector, x):
        if matrix is None:
            return None
        return _sized("Polyhedron", self._at(matrix, x), self._at(right, x), vector)

    def _at(self, entry, x):
        if not callable(entry):
            return entry
        if x is None:
            raise ValueError("Polyhedron: an entry is a function of x; pass x after the point.")
        return jnp.asarray(entry(x))


def _onto_affine(z: Array, E: Array, d: Array) -> Array:
    return z - jnp.linalg.pinv(E) @ (E @ z - d)


@jax.jit  # so that a call outside of compiled code does not compile the solver again
def onto_rows(z: Array, rows: Rows) -> Array:
    A, b, E, d = rows
    if A.shape[0] == 0:
        return _onto_affine(z, E, d)
    # The active rows are constants to the derivative; the face they span carries it.
    active, finite = _active(*jax.lax.stop_gradient((z, A, b, E, d)))
    face = jnp.concatenate([jnp.where(active[:, None], A, 0), E])
    point = _onto_affine(z, face, jnp.concatenate([jnp.where(active, b, 0), d]))
    return jnp.where(finite, point, jnp.nan)


def _active(z: Array, A: Array, b: Array, E: Array, d: Array) -> tuple[Array, Array]:
    """Which rows of `A y <= b` the nearest point y leans on, and whether all came out finite.

    Solves for the step (y − z) / unit, with a unit that makes a far point look like a near one.
    """
    try:
        import qpax
    except ImportError as error:
        raise ImportError(
            "Projecting onto linear inequalities needs qpax: pip install bilevel[qp]."
        ) from error
    slack, gap = b - A @ z, d - E @ z
    unit = jnp.maximum(1, jnp.max(jnp.concatenate([-slack, jnp.abs(gap)])))
    tol = 1e-10 if z.dtype == jnp.float64 else 1e-5
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        step, slack, force, *_ = qpax.solve_qp(
            jnp.eye(z.size, dtype=z.dtype),
            jnp.zeros_like(z),
            E,
            gap / unit,
            A,
            slack / unit,
            backend="i",
            solver_tol=tol,
            max_iter=40,
        )
    return slack < force, jnp.all(jnp.isfinite(step))


def _check_rows(what: str, left: str, matrix: Any, right: str, vector: Any) -> None:
    """Shapes of `matrix z = vector`, as far as they are known before x is."""
    if is_array(matrix) and matrix.ndim != 2:
        raise ValueError(f"{what}: {left} has shape {matrix.shape}; a matrix is needed.")
    if is_array(vector) and vector.ndim != 1:
        raise ValueError(f"{what}: {right} has shape {vector.shape}; a vector is needed.")
    if is_array(matrix) and is_array(vector) and matrix.shape[0] != vector.shape[0]:
        raise ValueError(
            f"{what}: {left} has {matrix.shape[0]} rows but {right} has {vector.shape[0]} entries."
        )


def _sized(what: str, matrix: Array, right: Array, z: Array) -> tuple[Array, Array]:
    """The rows in the dtype of z, once their shapes are known to fit."""
    if matrix.shape != (right.size, z.size) or right.ndim != 1:
        raise ValueError(
            f"{what}: a matrix of shape {matrix.shape} and a vector of shape {right.shape} do not "
            f"fit a variable of {z.size} entries."
        )
    return matrix.astype(z.dtype), right.astype(z.dtype)
