"""Closed sets for the upper and the lower variable: nearest points, and how far outside a point is.

Sets work on any pytree of floating arrays and are pytrees themselves: their numbers are leaves, so
a new bound recompiles nothing and a family of sets is one `vmap`.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, PyTree, Scalar, ScalarLike

from bilevel import trees


class Traits(NamedTuple):
    """What a method may rely on."""

    projectable: bool = True  # `project` works
    linear: bool = True  # linear inequalities and equalities in z, nothing else
    moves: bool = False  # the set depends on x
    inequalities: bool = True  # some constraints are inequalities
    equalities: bool = False  # some constraints are equations


class Constraints(NamedTuple):
    """Signed constraint values: `inequalities <= 0` and `equalities = 0` inside the set."""

    inequalities: PyTree[Array] = ()
    equalities: PyTree[Array] = ()


class Rows(NamedTuple):
    """A linear set over the ravelled variable: `A z <= b` and `E z = d`."""

    A: Float[Array, "m n"]
    b: Float[Array, " m"]
    E: Float[Array, "k n"]
    d: Float[Array, " k"]


def as_pytree(fn: Any) -> Any:
    """A callable that `jax.jit` takes as an argument: its code is static, its arrays are leaves."""
    return Partial(fn) if callable(fn) and _is_leaf(fn) else fn


def _as_arrays(tree: PyTree) -> PyTree[Array]:
    return trees.map(jnp.asarray, tree)


def _as_entry(entry: Any) -> Any:
    return as_pytree(entry) if entry is None or callable(entry) else jnp.asarray(entry)


def _is_leaf(thing: Any) -> bool:
    return jax.tree.structure(thing) == jax.tree.structure(0)


class AbstractSet(eqx.Module):
    """A closed set of points z. Where the set is Y(x), x is the second argument everywhere."""

    @abc.abstractmethod
    def traits(self) -> Traits:
        """What kind of set this is."""

    @property
    def projectable(self) -> bool:
        return self.traits().projectable

    @property
    def linear(self) -> bool:
        return self.traits().linear

    @property
    def moves(self) -> bool:
        return self.traits().moves

    @abc.abstractmethod
    def project(self, z: PyTree, x: PyTree | None = None) -> PyTree:
        """The nearest point of the set, in the structure and dtypes of z."""

    @abc.abstractmethod
    def constraints(self, z: PyTree, x: PyTree | None = None) -> Constraints:
        """The signed constraint values at z, for penalties and multipliers."""

    def violation(self, z: PyTree, x: PyTree | None = None) -> Scalar:
        """Euclidean norm of the constraint excess: zero inside, positive outside."""
        inequalities, equalities = self.constraints(z, x)
        excess = trees.map(lambda c: jnp.maximum(c, 0), inequalities), equalities
        return trees.norm(excess)

    def contains(
        self, z: PyTree, x: PyTree | None = None, tol: ScalarLike = 1e-6
    ) -> Bool[Array, ""]:
        """Whether the violation at z is at most `tol`."""
        violation = self.violation(z, x)
        return violation <= jnp.asarray(tol, violation.dtype)

    def rows(self, z: PyTree, x: PyTree | None = None) -> Rows:
        """A linear set as the matrices of `A z <= b`, `E z = d`, for solvers that want those.

        z is the ravelled tree, and only its shapes matter. Dense: meant for sets with up to a few
        thousand entries.
        """
        if not self.linear:
            raise NotImplementedError(
                f"{type(self).__name__} is not linear, so it has no rows A z <= b."
            )
        vector, unravel = ravel_pytree(trees.widen(_as_arrays(z)))

        def stacked(v: Array) -> tuple[Array, Array]:
            inequalities, equalities = self.constraints(unravel(v), x)
            return _concatenate(inequalities, v.dtype), _concatenate(equalities, v.dtype)

        zero = jnp.zeros_like(vector)
        (A, E), (b, d) = jax.jacfwd(stacked)(zero), stacked(zero)
        return Rows(A, -b, E, -d)

    def __repr__(self) -> str:
        fields = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in fields if value is not None)
        return f"{type(self).__name__}({shown})"


class Free(AbstractSet):
    """Everything: the set of a variable without constraints."""

    def traits(self):
        return Traits(inequalities=False)

    def project(self, z, x=None):
        return z

    def constraints(self, z, x=None):
        return Constraints()


class Box(AbstractSet):
    """Bounds on every entry: `lo <= z <= hi`.

    Args:
        lo, hi: a number or an array for every leaf, or a tree of those that is shaped like z or is
            a prefix of it. Infinite where a side is open.

    Raises:
        ValueError: lo exceeds hi somewhere, or their shapes do not match.
    """

    lo: PyTree[Array] = eqx.field(converter=_as_arrays, default=-np.inf)
    hi: PyTree[Array] = eqx.field(converter=_as_arrays, default=np.inf)

    def traits(self):
        return Traits()

    def __check_init__(self):
        for lo, hi in _pairs(self.lo, self.hi):
            if lo.shape != hi.shape and lo.shape and hi.shape:
                raise ValueError(f"Box: lo has shape {lo.shape} but hi has shape {hi.shape}.")
            if _known(lo, hi) and np.any(np.asarray(lo) > np.asarray(hi)):
                raise ValueError("Box: lo exceeds hi somewhere; the set would be empty.")

    def project(self, z, x=None):
        return trees.map(jnp.clip, z, _bound("lo", self.lo, z), _bound("hi", self.hi, z))

    def constraints(self, z, x=None):
        below = trees.sub(_bound("lo", self.lo, z), z)
        above = trees.sub(z, _bound("hi", self.hi, z))
        return Constraints((below, above))


class Ball(AbstractSet):
    """Points within a distance: `‖z − center‖ <= radius`, Euclidean over all leaves together.

    Args:
        radius: a number, zero or more.
        center: shaped like z; the origin when absent.

    Raises:
        ValueError: the radius is negative or not a scalar.
    """

    radius: Array = eqx.field(converter=jnp.asarray)
    center: PyTree[Array] | None = eqx.field(converter=_as_arrays, default=None)

    def traits(self):
        return Traits(linear=False)

    def __check_init__(self):
        _check_number("Ball: radius", self.radius, lambda r: r >= 0, "zero or more")

    def project(self, z, x=None):
        center = self._center(z)
        offset = trees.sub(z, center)
        distance = trees.norm(offset)
        radius = self.radius.astype(distance.dtype)
        outside = distance > radius
        factor = radius / jnp.where(outside, distance, 1)
        return trees.where(outside, trees.axpy(factor, offset, center), z)

    def constraints(self, z, x=None):
        distance = trees.norm(trees.sub(z, self._center(z)))
        return Constraints(distance - self.radius.astype(distance.dtype))

    def _center(self, z):
        return trees.zeros_like(z) if self.center is None else trees.cast_like(self.center, z)


class Simplex(AbstractSet):
    """Weights: `z >= 0` and `Σ z = scale`, over all entries of the tree together.

    Raises:
        ValueError: the scale is not a positive number.
    """

    scale: Array = eqx.field(converter=jnp.asarray, default=1.0)

    def traits(self):
        return Traits(equalities=True)

    def __check_init__(self):
        _check_number("Simplex: scale", self.scale, lambda s: s > 0, "a positive number")

    def project(self, z, x=None):
        # max(z − τ, 0), with τ such that the entries sum to the scale: sort, then find how many
        # stay positive. Written here because optax's needs implicit dtype promotion, and its
        # derivative does too, long after a context that allows it has ended.
        vector, unravel = _ravel(z)
        scale = self.scale.astype(vector.dtype)
        descending = -jnp.sort(-vector)
        counts = jnp.arange(1, vector.size + 1, dtype=vector.dtype)
        top = jax.lax.stop_gradient(descending[0])  # any shift cancels; this one keeps digits
        thresholds = (jnp.cumsum(descending - top) - scale) / counts
        positive = jnp.sum(descending - top > thresholds)
        return unravel(jax.nn.relu(vector - top - thresholds[positive - 1]))

    def constraints(self, z, x=None):
        vector, _ = _ravel(z)
        return Constraints(-vector, jnp.sum(vector) - self.scale.astype(vector.dtype))


class Affine(AbstractSet):
    """Solutions of linear equations: `E z = d`, z ravelled. Dependent rows are allowed.

    Args:
        E: k x n matrix, n the number of entries of z.
        d: k numbers.

    Raises:
        ValueError: the shapes do not match.
    """

    E: Float[Array, "k n"] = eqx.field(converter=jnp.asarray)
    d: Float[Array, " k"] = eqx.field(converter=jnp.asarray)

    def traits(self):
        return Traits(inequalities=False, equalities=True)

    def __check_init__(self):
        _check_rows("Affine", "E", self.E, "d", self.d)

    def project(self, z, x=None):
        vector, unravel = _ravel(z)
        return unravel(_onto_affine(vector, *_sized("Affine", self.E, self.d, vector)))

    def constraints(self, z, x=None):
        vector, _ = _ravel(z)
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

    A: Array | Callable | None = eqx.field(converter=_as_entry, default=None)
    b: Array | Callable | None = eqx.field(converter=_as_entry, default=None)
    E: Array | Callable | None = eqx.field(converter=_as_entry, default=None)
    d: Array | Callable | None = eqx.field(converter=_as_entry, default=None)

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
        vector, unravel = _ravel(z)
        return unravel(_onto_rows(vector, self.rows(z, x)))

    def constraints(self, z, x=None):
        vector, _ = _ravel(z)
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


class Coupled(AbstractSet):
    """Any smooth constraints that tie the levels: `h(x, y) <= 0` in every component.

    As a lower set it is `Y(x) = {y: h(x, y) <= 0}`; as an upper set it asks for `h(x, y*(x)) <= 0`.
    Either way points are given as `violation(y, x)`. It has no projection.

    Args:
        h: `h(x, y)` returns any pytree of arrays; `None` where there are equations alone.
        equalities: `e(x, y)` returns any pytree of arrays, for `e(x, y) = 0` besides.

    Raises:
        TypeError: h or equalities is not callable.
        ValueError: both are `None`.
    """

    h: Callable | None = eqx.field(converter=lambda h: h if h is None else as_pytree(h))
    equalities: Callable | None = eqx.field(
        converter=lambda e: e if e is None else as_pytree(e), default=None, kw_only=True
    )

    def traits(self):
        return Traits(
            projectable=False,
            linear=False,
            moves=True,
            inequalities=self.h is not None,
            equalities=self.equalities is not None,
        )

    def __check_init__(self):
        for name, fn in (("h", self.h), ("equalities", self.equalities)):
            if fn is not None and not callable(fn):
                raise TypeError(
                    f"Coupled: {name} is {type(fn).__name__}; a function {name}(x, y) is needed."
                )
        if self.h is None and self.equalities is None:
            raise ValueError("Coupled: give h, or equalities, or both.")

    def project(self, z, x=None):
        raise NotImplementedError(
            "Coupled has no projection, because h(x, y) <= 0 can be any set. Use a method that "
            "handles coupled constraints by penalties or multipliers, or write constraints that "
            "are linear in y as a Polyhedron (its entries may be functions of x)."
        )

    def constraints(self, z, x=None):
        if x is None:
            raise ValueError("Coupled: h is a function of x and y; pass x after y.")
        return Constraints(
            () if self.h is None else self.h(x, z),
            () if self.equalities is None else self.equalities(x, z),
        )


class Intersection(AbstractSet):
    """Points that lie in every one of several sets; what a tuple of sets becomes.

    Projects when at most one member is a true constraint, and when all are linear (by the same
    solve as `Polyhedron`).

    Raises:
        TypeError: a member is not a set.
    """

    sets: tuple[AbstractSet, ...] = eqx.field(converter=tuple)

    def __check_init__(self):
        for member in self.sets:
            if not isinstance(member, AbstractSet):
                raise TypeError(
                    f"Intersection: {member!r} is not a set; give a tuple of bilevel.sets."
                )

    def traits(self):
        linear = all(member.linear for member in self.sets)
        alone = len(self._members()) == 1 and self._members()[0].projectable
        every = [member.traits() for member in self.sets]
        return Traits(
            alone or linear,
            linear,
            moves=any(traits.moves for traits in every),
            inequalities=any(traits.inequalities for traits in every),
            equalities=any(traits.equalities for traits in every),
        )

    def project(self, z, x=None):
        members = self._members()
        if not members:
            return z
        if len(members) == 1:
            return members[0].project(z, x)
        if not self.linear:
            raise NotImplementedError(
                f"An Intersection of {', '.join(type(s).__name__ for s in self.sets)} has no "
                "projection: only linear sets can be projected onto together. Use a method that "
                "handles constraints by penalties or multipliers."
            )
        vector, unravel = _ravel(z)
        return unravel(_onto_rows(vector, self.rows(z, x)))

    def _members(self) -> list[AbstractSet]:
        return [member for member in self.sets if not isinstance(member, Free)]

    def constraints(self, z, x=None):
        every = [member.constraints(z, x) for member in self.sets]
        return Constraints(tuple(c.inequalities for c in every), tuple(c.equalities for c in every))


# --- projections in vector form ---------------------------------------------------------------


def _onto_affine(z: Array, E: Array, d: Array) -> Array:
    return z - jnp.linalg.pinv(E) @ (E @ z - d)


@jax.jit  # so that a call outside of compiled code does not compile the solver again
def _onto_rows(z: Array, rows: Rows) -> Array:
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


# --- small helpers ----------------------------------------------------------------------------


def _ravel(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """One vector in the widest dtype of the leaves, and the way back."""
    tree = _as_arrays(tree)
    vector, unravel = ravel_pytree(trees.widen(tree))
    return vector, lambda v: trees.cast_like(unravel(v), tree)


def _concatenate(tree: PyTree, dtype: Any) -> Array:
    pieces = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros(0, dtype), *pieces])


def _bound(name: str, bound: PyTree[Array], z: PyTree) -> PyTree[Array]:
    """The bound of every leaf of z, in its shape and dtype."""

    def of_leaf(bound, leaf):
        if bound.shape and bound.shape != leaf.shape:
            raise ValueError(f"Box: {name} has shape {bound.shape} where a leaf has {leaf.shape}.")
        return jnp.broadcast_to(bound.astype(leaf.dtype), leaf.shape)

    def of_part(bound, part):
        return trees.map(lambda leaf: of_leaf(bound, leaf), part)

    if not _is_prefix(bound, z):
        raise ValueError(
            f"Box: {name} is a tree {jax.tree.structure(bound)}, but the point is "
            f"{jax.tree.structure(z)}. Give one number for all, or a tree of that structure."
        )
    return trees.map(of_part, bound, z)


def _is_prefix(prefix: PyTree, tree: PyTree) -> bool:
    """Whether each leaf of the first stands for a part of the second."""
    try:
        jax.tree.structure(prefix).flatten_up_to(tree)
    except ValueError:
        return False
    return True


def _pairs(lo: PyTree[Array], hi: PyTree[Array]) -> list[tuple[Array, Array]]:
    """Lower and upper bounds that meet at one leaf."""
    if _is_leaf(lo):
        return [(lo, leaf) for leaf in jax.tree.leaves(hi)]
    if _is_leaf(hi):
        return [(leaf, hi) for leaf in jax.tree.leaves(lo)]
    if jax.tree.structure(lo) != jax.tree.structure(hi):
        raise ValueError(
            f"Box: lo is a tree {jax.tree.structure(lo)} but hi is {jax.tree.structure(hi)}."
        )
    return list(zip(jax.tree.leaves(lo), jax.tree.leaves(hi), strict=True))


def _check_number(what: str, value: Array, fine: Callable[[Any], bool], needed: str) -> None:
    if value.ndim > 0:
        raise ValueError(f"{what} has shape {value.shape}; one number is needed.")
    if _known(value) and not fine(value.item()):
        raise ValueError(f"{what} is {value.item()}; {needed} is needed.")


def _check_rows(what: str, left: str, matrix: Any, right: str, vector: Any) -> None:
    """Shapes of `matrix z = vector`, as far as they are known before x is."""
    if _is_array(matrix) and matrix.ndim != 2:
        raise ValueError(f"{what}: {left} has shape {matrix.shape}; a matrix is needed.")
    if _is_array(vector) and vector.ndim != 1:
        raise ValueError(f"{what}: {right} has shape {vector.shape}; a vector is needed.")
    if _is_array(matrix) and _is_array(vector) and matrix.shape[0] != vector.shape[0]:
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


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array)


def _known(*values: Array) -> bool:
    return not any(isinstance(value, Tracer) for value in values)


def _shown(value: Any) -> str:
    """Numbers as numbers while they are few, and functions by their name."""
    if isinstance(value, Partial):
        return getattr(value.func, "__name__", repr(value.func))
    if callable(value) or isinstance(value, tuple):
        return repr(value)
    return repr(trees.map(_numbers, value)).replace("'<", "").replace(">'", "")


def _numbers(leaf: Array) -> Any:
    if not _known(leaf) or leaf.size > 12:
        return f"<{leaf.dtype}{list(leaf.shape)}>"
    shortest = [float(str(number)) for number in np.asarray(leaf).flat]  # 0.1, also in float32
    return np.reshape(shortest, leaf.shape).tolist()
