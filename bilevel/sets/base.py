"""What a set is: nearest points, signed constraint values, and how far outside a point is."""

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
from bilevel.fields import as_number


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
    """The callable `fn` as an argument for `jax.jit`: its code is static, its arrays are leaves."""
    return Partial(fn) if callable(fn) and is_leaf(fn) else fn


def as_arrays(tree: PyTree) -> PyTree[Array]:
    return trees.map(as_number, tree)


def as_entry(entry: Any) -> Any:
    return as_pytree(entry) if entry is None or callable(entry) else as_number(entry)


def is_leaf(thing: Any) -> bool:
    return jax.tree.structure(thing) == jax.tree.structure(0)


class AbstractSet(eqx.Module):
    """A closed set of points z. Where the set is Y(x), x is the second argument everywhere."""

    @abc.abstractmethod
    def traits(self) -> Traits:
        """What kind of set this is."""

    def __check_init__(self):
        """No entry is NaN."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(self):
            floats = is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
            if floats and known(leaf) and np.isnan(np.asarray(leaf)).any():
                name = jax.tree_util.keystr(path).removeprefix(".")
                raise ValueError(
                    f"{type(self).__name__}: {name} contains a NaN; where there is no bound, "
                    "leave it out or make it infinite."
                )

    @property
    def projectable(self) -> bool:
        return self.traits().projectable

    @property
    def simple(self) -> bool:
        """Whether the set is fixed and has a projection that takes no quadratic program."""
        return self.projectable and not self.moves

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
        return trees.norm(excess).astype(trees.widest(z))

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
        vector, unravel = ravel_pytree(trees.widen(as_arrays(z)))

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


def ravel(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """One vector in the widest dtype of the leaves, and the way back."""
    tree = as_arrays(tree)
    vector, unravel = ravel_pytree(trees.widen(tree))
    return vector, lambda v: trees.cast_like(unravel(v), tree)


def _concatenate(tree: PyTree, dtype: Any) -> Array:
    pieces = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros(0, dtype), *pieces])


def check_number(what: str, value: Array, fine: Callable[[Any], bool], needed: str) -> None:
    if value.ndim > 0:
        raise ValueError(f"{what} has shape {value.shape}; one number is needed.")
    if known(value) and not fine(value.item()):
        raise ValueError(f"{what} is {value.item()}; {needed} is needed.")


def is_array(value: Any) -> bool:
    return isinstance(value, jax.Array)


def known(*values: Array) -> bool:
    return not any(isinstance(value, Tracer) for value in values)


def _shown(value: Any) -> str:
    """Numbers as numbers while they are few, and functions by their name."""
    if isinstance(value, Partial):
        return getattr(value.func, "__name__", repr(value.func))
    if callable(value) or isinstance(value, tuple):
        return repr(value)
    return repr(trees.map(_numbers, value)).replace("'<", "").replace(">'", "")


def _numbers(leaf: Array) -> Any:
    if not known(leaf) or leaf.size > 12:
        return f"<{leaf.dtype}{list(leaf.shape)}>"
    shortest = [float(str(number)) for number in np.asarray(leaf).flat]  # 0.1, also in float32
    return np.reshape(shortest, leaf.shape).tolist()
