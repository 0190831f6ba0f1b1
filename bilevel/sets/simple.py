"""Sets with a projection in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bilevel import trees
from bilevel.fields import as_number
from bilevel.sets.base import (
    AbstractSet,
    Constraints,
    Traits,
    as_arrays,
    check_number,
    is_leaf,
    known,
    ravel,
)


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

    lo: PyTree[Array] = eqx.field(converter=as_arrays, default=-np.inf)
    hi: PyTree[Array] = eqx.field(converter=as_arrays, default=np.inf)

    def traits(self):
        return Traits()

    def __check_init__(self):
        for lo, hi in _pairs(self.lo, self.hi):
            if lo.shape != hi.shape and lo.shape and hi.shape:
                raise ValueError(f"Box: lo has shape {lo.shape} but hi has shape {hi.shape}.")
            if known(lo, hi) and np.any(np.asarray(lo) > np.asarray(hi)):
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

    radius: Array = eqx.field(converter=as_number)
    center: PyTree[Array] | None = eqx.field(converter=as_arrays, default=None)

    def traits(self):
        return Traits(linear=False)

    def __check_init__(self):
        check_number("Ball: radius", self.radius, lambda r: r >= 0, "zero or more")

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

    scale: Array = eqx.field(converter=as_number, default=1.0)

    def traits(self):
        return Traits(equalities=True)

    def __check_init__(self):
        check_number("Simplex: scale", self.scale, lambda s: s > 0, "a positive number")

    def project(self, z, x=None):
        # max(z − τ, 0), with τ such that the entries sum to the scale: sort, then find how many
        # stay positive. Written here because optax's needs implicit dtype promotion, and its
        # derivative does too, long after a context that allows it has ended.
        vector, unravel = ravel(z)
        scale = self.scale.astype(vector.dtype)
        descending = -jnp.sort(-vector)
        counts = jnp.arange(1, vector.size + 1, dtype=vector.dtype)
        top = jax.lax.stop_gradient(descending[0])  # any shift cancels; this one keeps digits
        thresholds = (jnp.cumsum(descending - top) - scale) / counts
        positive = jnp.sum(descending - top > thresholds)
        return unravel(jax.nn.relu(vector - top - thresholds[positive - 1]))

    def constraints(self, z, x=None):
        vector, _ = ravel(z)
        return Constraints(-vector, jnp.sum(vector) - self.scale.astype(vector.dtype))


class CappedSimplex(AbstractSet):
    """A choice of m entries, relaxed: `0 <= z <= 1` and `Σ z = m`, over all entries together.

    Raises:
        ValueError: m is not a positive number, or larger than the number of entries.
    """

    m: Array = eqx.field(converter=as_number)

    def traits(self):
        return Traits(equalities=True)

    def __check_init__(self):
        check_number("CappedSimplex: m", self.m, lambda m: m > 0, "a positive number")

    def project(self, z, x=None):
        # clip(z − τ, 0, 1): bisection tells which entries lie between 0 and 1, and they give τ.
        vector, unravel = ravel(z)
        m = self.m.astype(vector.dtype)
        if known(self.m) and np.asarray(self.m) > vector.size:
            raise ValueError(f"CappedSimplex: m is {self.m:g}, but z has {vector.size} entries.")
        fixed = jax.lax.stop_gradient(vector)

        def halve(_, ends):
            lo, hi = ends
            middle = (lo + hi) / 2
            above = jnp.sum(jnp.clip(fixed - middle, 0, 1)) > m
            return jnp.where(above, middle, lo), jnp.where(above, hi, middle)

        lo, hi = jax.lax.fori_loop(0, 64, halve, (jnp.min(fixed) - 1, jnp.max(fixed)))
        at = fixed - (lo + hi) / 2
        between = (at > 0) & (at < 1)
        total = jnp.sum(jnp.where(between, vector, 0)) + jnp.sum(at >= 1, dtype=m.dtype) - m
        count = jnp.sum(between, dtype=m.dtype)
        shift = jnp.where(count > 0, total / jnp.maximum(count, 1), (lo + hi) / 2)
        return unravel(jnp.clip(vector - shift, 0, 1))

    def constraints(self, z, x=None):
        vector, _ = ravel(z)
        outside = jnp.concatenate([-vector, vector - 1])
        return Constraints(outside, jnp.sum(vector) - self.m.astype(vector.dtype))


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
    if is_leaf(lo):
        return [(lo, leaf) for leaf in jax.tree.leaves(hi)]
    if is_leaf(hi):
        return [(leaf, hi) for leaf in jax.tree.leaves(lo)]
    if jax.tree.structure(lo) != jax.tree.structure(hi):
        raise ValueError(
            f"Box: lo is a tree {jax.tree.structure(lo)} but hi is {jax.tree.structure(hi)}."
        )
    return list(zip(jax.tree.leaves(lo), jax.tree.leaves(hi), strict=True))
