"""LISA: an update that moves a few random layers at a time, and remembers only those.

Pan, Liu, Diao, Pi, Zhang, Han, Zhang. "LISA: Layerwise importance sampling for memory-efficient
large language model fine-tuning". NeurIPS 2024, arXiv:2403.17919.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from bilevel.fields import count
from bilevel.updates import AbstractUpdate


class LISA(AbstractUpdate):
    """Another update, of embeddings, norm and head at every step, and of `blocks` of the layers.

    Which layers depends on the seed and the step alone; what the update remembers of them is for
    so many layers, and begins anew when they are drawn. The gradient is that of all parameters.

    Attributes:
        update: AdamW, for example; it sees a tree of the layers that move, and one of the rest.
        every: steps after which layers are drawn again.
    """

    update: AbstractUpdate
    blocks: int = count(2)
    every: int = count(20)
    seed: int = count(0, least=0)

    def init(self, tree):
        rest, layers = _parted(tree)
        if not isinstance(layers, list) or len(layers) < self.blocks:
            raise ValueError(
                f"LISA is to move {self.blocks} layers at a time; a list of at least as many is "
                "needed as the parameters' layers."
            )
        return self.update.init(rest), self.update.init(layers[: self.blocks])

    def step(self, direction, memory, tree, k):
        (along, alongs), (rest, layers) = map(_parted, (direction, tree))
        kept, kept_layers = memory
        rest, kept = self.update.step(along, kept, rest, k)
        number = jnp.asarray(k, jnp.int32)
        chosen = self.chosen(number, len(layers))
        moving = _picked(layers, chosen)
        drawn = jax.lax.rem(number, jnp.int32(self.every)) == 0
        kept_layers = jax.tree.map(
            lambda new, old: jnp.where(drawn, new, old), self.update.init(moving), kept_layers
        )
        moved, kept_layers = self.update.step(_picked(alongs, chosen), kept_layers, moving, k)
        return {**rest, "layers": _put(layers, chosen, moved)}, (kept, kept_layers)

    def chosen(self, k: Int[Array, ""], layers: int) -> Int[Array, " blocks"]:
        """Numbers of the layers that move at step k."""
        key = jax.random.fold_in(jax.random.key(self.seed), k // jnp.int32(self.every))
        return jax.random.permutation(key, layers)[: self.blocks].astype(jnp.int32)


def _parted(tree: PyTree) -> tuple[PyTree, list[PyTree]]:
    return {name: part for name, part in tree.items() if name != "layers"}, tree["layers"]


def _picked(layers: list[PyTree], chosen: Int[Array, " blocks"]) -> list[PyTree]:
    return [
        jax.tree.map(lambda *leaves, i=i: jax.lax.select_n(i, *leaves), *layers) for i in chosen
    ]


def _put(layers: list[PyTree], chosen: Int[Array, " blocks"], moved: list[PyTree]) -> list[PyTree]:
    """The layers with those that were chosen in their places."""
    found = []
    for j, layer in enumerate(layers):
        for i, new in zip(chosen, moved, strict=True):
            layer = jax.tree.map(lambda a, b, here=i == j: jnp.where(here, b, a), layer, new)
        found.append(layer)
    return found
