"""The two losses of BiP, which see only masked parameters, and its hypergradient."""

from collections.abc import Callable, Collection
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar, ScalarLike

from bilevel import hypergrad, trees
from bilevel.apps.pruning.masks import AbstractMasking
from bilevel.linear import CG
from bilevel.problem import Batch, Problem

Loss = Callable[[PyTree, Any], Scalar]


def weights(params: PyTree, keep: Collection[str] = ()) -> dict[str, Array]:
    """The arrays that are pruned, by their place: two axes or more, and not one of `keep`.

    Biases and the parameters of normalization have one axis, and are never pruned.

    Raises:
        ValueError: a name of `keep` is none of an array, or no array is left.
    """
    arrays = _named(params)
    for name in keep:
        if name not in arrays:
            raise ValueError(f"{name!r} is to be kept, and is no array; there are {list(arrays)}.")
    found = {n: a for n, a in arrays.items() if jnp.ndim(a) >= 2 and n not in keep}
    if not found:
        raise ValueError("no array of two axes or more is left to prune.")
    return found


def masked(masks: dict[str, Array], params: PyTree) -> PyTree:
    """Parameters with the pruned weights at zero: `m ⊙ y`."""
    one = lambda path, a: masks[_name(path)] * a if _name(path) in masks else a  # noqa: E731
    return jax.tree_util.tree_map_with_path(one, params)


class BiP(eqx.Module):
    """The hypergradient of the mask, handed straight through to the scores.

    With `g = ∇ℓ(m ⊙ y)` it is `(y − m ⊙ g/γ) ⊙ g`: one backward pass. This leaves the curvature
    of ℓ out, exact where ℓ is linear; the relative error falls like `1/γ`. With `exact` it is
    that of the implicit function theorem with all curvature, by conjugate gradients.
    """

    loss: Loss = eqx.field(static=True)
    masking: AbstractMasking
    decay: ScalarLike
    gamma: ScalarLike
    exact: int = eqx.field(static=True)

    def __call__(self, x: dict[str, Array], y: PyTree, batch: Batch) -> dict[str, Array]:
        masks = self.masking(x)
        if self.exact:
            grad = hypergrad.implicit(
                relaxed(self.loss, self.decay), masks, y, batch, linear=CG(self.exact)
            ).grad
        else:
            g = weights_of(jax.grad(self.loss)(masked(masks, y), batch.upper), masks)
            grad = trees.map(
                lambda m, y, g: (y - m * g / jnp.asarray(self.gamma, g.dtype)) * g,
                masks, weights_of(y, masks), g,
            )  # fmt: skip
        return trees.map(lambda s, d: jnp.sign(s) * d, x, grad)


def problem(
    loss: Loss,
    masking: AbstractMasking,
    *,
    decay: ScalarLike = 1e-4,
    gamma: ScalarLike = 1e4,
    exact: int = 0,
) -> Problem:
    """Both levels of BiP.

    x holds a score for every weight, as a dict like `weights(params)`; y is the parameters. The
    mask m(x) keeps the weights of the largest absolute scores.

    Args:
        loss: `ℓ(params, batch) -> scalar`, such as a mean cross-entropy.
        decay: of the lower loss, `ℓ(m ⊙ y) + (decay/2) ‖y‖²`.
        gamma: of the hypergradient. The decay itself by the derivation, but the curvature that is
            left out must be small against it: the authors take 1e4 beside a decay of 1e-4.
        exact: steps of conjugate gradients for the exact hypergradient, which takes the decay and
            no gamma; 0 for BiP's.
    """
    return Problem(
        _Upper(loss, masking),
        _Lower(loss, masking, decay),
        hypergradient=BiP(loss, masking, decay, gamma, exact),
    )


def relaxed(loss: Loss, decay: ScalarLike) -> Problem:
    """The problem with the mask itself, of any numbers, as the upper variable."""
    return Problem(_Upper(loss, _as_is), _Lower(loss, _as_is, decay))


class _Upper(eqx.Module):
    loss: Loss = eqx.field(static=True)
    masking: Callable

    def __call__(self, x, y, batch):
        return self.loss(masked(self.masking(x), y), batch)


class _Lower(eqx.Module):
    loss: Loss = eqx.field(static=True)
    masking: Callable
    decay: ScalarLike

    def __call__(self, x, y, batch):
        value = self.loss(masked(self.masking(x), y), batch)
        return value + jnp.asarray(self.decay, value.dtype) / 2 * trees.dot(y, y)


def _as_is(masks):
    return masks


def weights_of(params: PyTree, names: Collection[str]) -> dict[str, Array]:
    """The arrays of these names."""
    return {name: a for name, a in _named(params).items() if name in names}


def _named(params: PyTree) -> dict[str, Array]:
    return {_name(path): a for path, a in jax.tree_util.tree_leaves_with_path(params)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
