"""A bilevel problem: two losses, their feasible sets, and the samples of a step."""

import abc
import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Int, PyTree

from bilevel import sets


class Structure(enum.Enum):
    """What a problem may declare beyond its losses. A method lists the kinds it handles."""

    UPPER_SET = "upper_set"
    UPPER_COUPLED = "upper_set that ties x and y*(x)"
    LOWER_SET = "lower_set with a simple projection"
    LOWER_EQUATIONS = "lower_set of linear equations"
    LOWER_LINEAR = "lower_set of linear constraints"
    LOWER_COUPLED = "lower_set of inequalities h(x, y) <= 0"
    HYPERGRADIENT = "hypergradient"
    LOWER_STEP = "lower_step"
    BLOCKS = "blocks drawn at random"  # requested by `Data(blocks=...)`, not by a problem


LOWER_CONSTRAINTS = frozenset(
    {
        Structure.LOWER_SET,
        Structure.LOWER_EQUATIONS,
        Structure.LOWER_LINEAR,
        Structure.LOWER_COUPLED,
    }
)  # a lower_set of any kind


class Declared(NamedTuple):
    """One thing that a problem declares. A method that handles any of its kinds handles it."""

    kinds: frozenset[Structure]
    words: str  # for the error message


class Problem(eqx.Module):
    """Minimise `f(x, y*(x))` over `x`, where `y*(x)` minimises `g(x, ·)`.

    A problem is a pytree. The arrays in losses built with `jax.tree_util.Partial` or as Equinox
    modules are its leaves, so `vmap` works over a family of problems.

    Args:
        upper, lower: `loss(x, y, batch) -> scalar`, written in JAX. x and y are any pytrees of
            floating arrays; `batch` is `None` without data.
        upper_set: a set of `bilevel.sets` that constrains x, or a tuple of sets.
        lower_set: a set that constrains y; it may depend on x.
        hypergradient: `fn(x, y, batch) -> tree like x`, where `batch` is a `Batch`. Pass it if
            the hypergradient is known in closed form; methods then use it and estimate nothing.
        lower_step: `fn(x, y, batch) -> y`, one step on the lower problem if that is not a
            gradient step (policy iteration, a trainer). An object with `init(x, y) -> memory`
            is called as `fn(x, y, memory, batch) -> (y, memory)`.
        blocks: m, for m lower problems that share x: minimise `mean_b f_b(x, y_b*(x))` where
            `y_b*(x)` minimises `g_b(x, ·)`. Every leaf of y has a leading axis of m blocks.
            `upper` returns the mean of the f_b and `lower` the sum of the g_b over the blocks in
            its arguments: y has one row for each of them (m or fewer), and so has `batch`.
            If `None`, there is one block, the whole y.

    Raises:
        TypeError: a loss is not callable, or a set is not one of `bilevel.sets`.
        ValueError: `blocks` is not a whole number of at least 1.
    """

    upper: Callable
    lower: Callable
    upper_set: sets.AbstractSet
    lower_set: sets.AbstractSet
    hypergradient: Callable | None
    lower_step: Callable | None
    blocks: int | None = eqx.field(static=True)

    def __init__(
        self,
        upper: Callable,
        lower: Callable,
        *,
        upper_set=None,
        lower_set=None,
        hypergradient: Callable | None = None,
        lower_step: Callable | None = None,
        blocks: int | None = None,
    ):
        if blocks is not None and (type(blocks) is not int or blocks < 1):
            raise ValueError(
                f"Problem.blocks is {blocks!r}; the number of lower problems is needed."
            )
        self.upper = _as_argument("upper", upper)
        self.lower = _as_argument("lower", lower)
        self.upper_set = _as_set("upper_set", upper_set)
        self.lower_set = _as_set("lower_set", lower_set)
        self.hypergradient = hypergradient and _as_argument("hypergradient", hypergradient)
        self.lower_step = lower_step and _as_argument("lower_step", lower_step)
        self.blocks = blocks

    def replace(self, **changes: Any) -> "Problem":
        """A copy of the problem with some arguments changed.

        A declared hypergradient belongs to both losses, and a lower step to the lower loss. They
        are dropped when their loss changes, unless new ones are passed as well.
        """
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if "lower" in changes:
            kept["lower_step"] = None
        if "lower" in changes or "upper" in changes:
            kept["hypergradient"] = None
        return Problem(**kept | changes)

    def structure(self) -> list[Declared]:
        """Everything this problem declares beyond its losses."""
        found = []

        def declare(words: str, *kinds: Structure):
            found.append(Declared(frozenset(kinds), words))

        if not isinstance(self.upper_set, sets.Free):
            fixed = self.upper_set.projectable and not self.upper_set.moves
            kind = Structure.UPPER_SET if fixed else Structure.UPPER_COUPLED
            declare(f"upper_set is {_a(self.upper_set)}", kind)
        if not isinstance(self.lower_set, sets.Free):
            declare(f"lower_set is {_a(self.lower_set)}", *_lower_kinds(self.lower_set))
        if self.hypergradient is not None:
            declare("it declares a hypergradient in closed form", Structure.HYPERGRADIENT)
        if self.lower_step is not None:
            declare("it declares a lower_step of its own", Structure.LOWER_STEP)
        return found


def _lower_kinds(a_set: sets.AbstractSet) -> list[Structure]:
    """All kinds of a set. A box has three: simple projection, linear, inequalities."""
    traits = a_set.traits()
    kinds = {
        Structure.LOWER_SET: a_set.simple,
        Structure.LOWER_EQUATIONS: traits.linear and not traits.inequalities,
        Structure.LOWER_LINEAR: traits.linear,
        Structure.LOWER_COUPLED: not traits.equalities,
    }
    return [kind for kind, holds in kinds.items() if holds]


def _a(thing: object) -> str:
    name = type(thing).__name__
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"


def _as_set(name: str, value) -> sets.AbstractSet:
    if value is None:
        return sets.Free()
    if isinstance(value, (tuple, list)):
        return sets.Intersection(tuple(_as_set(name, member) for member in value))
    if not isinstance(value, sets.AbstractSet):
        raise TypeError(
            f"Problem.{name} is {_a(value)}; a set of bilevel.sets is needed, "
            "for example bilevel.sets.Box(0.0, 1.0)."
        )
    return value


class _Held(eqx.Module):
    """A callable module whose arrays are leaves and whose rest is static."""

    arrays: Any
    rest: Any = eqx.field(static=True)

    def __call__(self, *args):
        return eqx.combine(self.arrays, self.rest)(*args)

    def __getattr__(self, name: str):
        if name.startswith("__") or name in ("arrays", "rest"):
            raise AttributeError(name)
        return getattr(eqx.combine(self.arrays, self.rest), name)


def _as_argument(name: str, fn: Callable) -> Callable:
    """A callable that can be an argument under `jax.jit`: static code, arrays as leaves."""
    if not callable(fn):
        raise TypeError(f"Problem.{name} is {_a(fn)}; a function is needed.")
    if isinstance(fn, functools.partial) and not isinstance(fn, Partial):
        fn = Partial(fn.func, *fn.args, **fn.keywords)
    fn = jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, np.ndarray) else a, fn)
    fn = sets.as_pytree(fn)
    if all(eqx.is_array(leaf) for leaf in jax.tree.leaves(fn)):
        return fn
    return _Held(*eqx.partition(fn, eqx.is_array))


# --- samples ------------------------------------------------------------------------------


class Batch(NamedTuple):
    """The samples of one step: `upper` and `lower`, each passed to its loss unchanged.

    A method that uses several batches of a level per step (see `method.draws(problem)`) gets them
    as a `Samples` handle, or stacked on a leading axis. A method that uses one batch gets the
    batch itself. `index` has the same structure and holds the row numbers of finite-sum data, or
    the numbers of the drawn blocks, which are the same at both levels. `whole` holds, for each
    level, a handle of one batch of all rows, where both levels have finitely many.
    """

    upper: Any = None
    lower: Any = None
    index: Any = None
    whole: Any = None


class Draws(NamedTuple):
    """The number of batches that one step uses: of the `upper` level, and of the `lower`."""

    upper: int
    lower: int


class Samples(eqx.Module):
    """Several batches of one source: `samples[i]` is the i-th, `samples.skip(n)[i]` the (n+i)-th.

    The batches are not stacked. Each is read where it is used, so a step that may need thirty
    batches copies only the ones it uses.
    """

    @abc.abstractmethod
    def __getitem__(self, i: int | Int[Array, ""]) -> PyTree:
        """The i-th batch; i may be traced."""

    def skip(self, n: int | Int[Array, ""]) -> "Samples":
        """The samples from the n-th on; n may be traced."""
        return OffsetSamples(self, n)

    def stack(self, n: int) -> PyTree:
        """The first n batches on a leading axis."""
        return jax.vmap(self.__getitem__)(jnp.arange(n))


class OffsetSamples(Samples):
    samples: Samples
    n: int | Int[Array, ""]

    def __getitem__(self, i):
        return self.samples[self.n + i]


class RepeatedBatch(Samples):
    """The same batch for every draw: full-batch data, or no data."""

    batch: Any

    def __getitem__(self, i):
        return self.batch

    def skip(self, n) -> Samples:
        return self


class Stacked(Samples):
    """Batches on a leading axis."""

    batches: Any

    def __getitem__(self, i):
        return jax.tree.map(lambda leaf: leaf[i], self.batches)


def as_samples(batches: Any, n: int) -> Samples:
    """One half of a `Batch` with n draws as `Samples`; `None` stays `None` for every draw."""
    if isinstance(batches, Samples):
        return batches
    if batches is None or n == 1:
        return RepeatedBatch(batches)
    if {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)} != {(n,)}:
        raise ValueError(
            f"one step uses {n} batches of a level: stack them on a leading axis of length {n}, or "
            "pass bl.RepeatedBatch(batch) to use one for all."
        )
    return Stacked(batches)


class ZippedSamples(Samples):
    """Draw i of both levels."""

    upper: Samples
    lower: Samples

    def __getitem__(self, i):
        return Batch(self.upper[i], self.lower[i])


def as_batches(batch: Batch, draws: Draws) -> Samples:
    """Both halves of a `Batch` as `Samples`: draw i is the `Batch` of the i-th draws."""
    upper, lower = as_samples(batch.upper, draws.upper), as_samples(batch.lower, draws.lower)
    if isinstance(upper, RepeatedBatch) and isinstance(lower, RepeatedBatch):
        return RepeatedBatch(Batch(upper.batch, lower.batch))
    return ZippedSamples(upper, lower)
