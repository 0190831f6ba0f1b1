"""Several lower problems that share x, a few of which are drawn in each step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree, ScalarLike

from bilevel import oracles, trees
from bilevel.linear import matrices
from bilevel.problem import Batch, Problem
from bilevel.typing import Lower, RandomKey, Scalar, Upper

Rows = PyTree  # a tree with a leading axis of blocks


class Blocks(NamedTuple):
    """A problem seen as m lower problems; m = 1 if it declares no blocks.

    Attributes:
        problem: its losses accept any subset of blocks, on the leading axis of y.
        m: the number of blocks.
        declared: whether the user's problem declares blocks, so that y has a block axis.
    """

    problem: Problem
    m: int
    declared: bool

    @classmethod
    def of(cls, problem: Problem) -> "Blocks":
        if problem.blocks is not None:
            return cls(problem, problem.blocks, True)
        upper, lower = Partial(_one_block, problem.upper), Partial(_one_block, problem.lower)
        return cls(Problem(upper, lower, upper_set=problem.upper_set, blocks=1), 1, False)

    def drawn(self, batch: Batch) -> Int[Array, " drawn"]:
        """The indices of the blocks in a batch: `batch.index` if it is set, else all in order."""
        upper, lower, *_ = batch.index or Batch()
        drawn = upper if lower is None else lower
        return drawn if drawn is not None and self.declared else jnp.arange(self.m)

    def stack(self, y: Lower) -> Rows:
        """y with a leading axis of blocks."""
        return y if self.declared else trees.map(lambda leaf: jnp.asarray(leaf)[None], y)

    def unstack(self, rows: Rows) -> Lower:
        """Undo `stack`: a tree shaped like the user's y."""
        return rows if self.declared else take(rows, 0)


def _one_block(loss: Any, x: Upper, rows: Rows, batch: Any) -> Scalar:
    return loss(x, take(rows, 0), batch)


def take(rows: Rows, drawn: Int[Array, " drawn"] | int) -> PyTree:
    """The rows of the drawn blocks."""
    return trees.map(lambda leaf: leaf[drawn], rows)


def put(rows: Rows, drawn: Int[Array, " drawn"], new: Rows) -> Rows:
    """All rows, with those of the drawn blocks replaced by `new`."""
    return jax.tree.map(lambda leaf, row: leaf.at[drawn].set(row), rows, new)


def choose(condition: Array, a: Rows, b: Rows) -> Rows:
    """Row by row: `a` where the condition holds, else `b`."""
    return jax.tree.map(lambda p, q: jnp.where(_beside(condition, p), p, q), a, b)


def scale(factors: Array, rows: Rows) -> Rows:
    """Each row times its factor."""
    return trees.map(lambda p: _beside(factors, p).astype(p.dtype) * p, rows)


def _beside(numbers: Array, leaf: Array) -> Array:
    return numbers.reshape(-1, *(1,) * (leaf.ndim - 1))


def identities(rows: Rows) -> Float[Array, "blocks m m"]:
    """One identity matrix per row, sharded like the rows."""
    flat, _ = trees.ravel_rows(rows)
    return jnp.zeros_like(flat)[:, :, None] + jnp.eye(flat.shape[1], dtype=flat.dtype)[None]


def floor_eigenvalues(H: Float[Array, "blocks m m"], floor: ScalarLike) -> Array:
    """`H_b ← P_{⪰ floor}(H_b)` of every matrix."""
    return jax.vmap(matrices.floor_eigenvalues, (0, None))(H, floor)


def solve(H: Float[Array, "blocks m m"], rows: Rows) -> Rows:
    """`H_b⁻¹ r_b` of every row."""
    return jax.vmap(matrices.solve)(H, rows)


def multiply(M: Float[Array, "n m"], v: PyTree, like: PyTree) -> PyTree:
    """`M v` of one block, shaped like `like`."""
    return matrices.multiply(M, v, like)


def draw(key: RandomKey, count: int, size: int) -> Int[Array, " drawn"]:
    """Draw `size` of `count` blocks uniformly without replacement; all in order if equal."""
    return jnp.arange(count) if size == count else jax.random.permutation(key, count)[:size]


def upper_grads(
    problem: Problem, x: Upper, y: Rows, batch: Any, count: int
) -> tuple[Scalar, Rows, Rows]:
    """The mean of f_b over the given blocks, and `∇_x f_b` and `∇_y f_b` of each.

    With all blocks, every row of `∇_x f_b` is replaced by the mean `∇_x f`, which one pass over
    all blocks gives. A mean over the blocks is the same.
    """
    given = jax.tree.leaves(y)[0].shape[0]
    if given == count:
        value, f_x, f_y = oracles.upper_grads(problem, x, y, batch)
        same = trees.map(lambda leaf: jnp.broadcast_to(leaf, (given, *leaf.shape)), f_x)
        return value, same, trees.scale(given, f_y)

    def of_one(y, batch):
        alone = trees.map(lambda leaf: leaf[None], (y, batch))
        value, f_x, f_y = oracles.upper_grads(problem, x, *alone)
        return value, f_x, take(f_y, 0)

    values, f_x, f_y = jax.vmap(of_one)(y, batch)
    return values.mean(), f_x, f_y
