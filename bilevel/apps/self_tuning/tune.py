"""The two losses of a classifier with noise, a run of STN, and training at constant strengths."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Scalar

from bilevel import methods, trees
from bilevel.apps.self_tuning.strengths import Augmentation, dropped, layer, share, values
from bilevel.data import Data
from bilevel.driver import Result, train
from bilevel.lower.responses import HyperDense
from bilevel.problem import Problem
from bilevel.selection import solve
from bilevel.typing import RandomKey
from bilevel.updates import FromOptax, Momentum

Samples = tuple[Array, Array]  # flat inputs, labels


class Tuning(eqx.Module):
    """A network of dense layers, dropout before each but the first, augmentations of its inputs.

    Attributes:
        augmentations: by name; x has an entry for each, and `dropout`.
        dropout: its rate at the start.
        decay: of the lower loss.
    """

    augmentations: Mapping[str, Augmentation] = eqx.field(static=True)
    dropout: float = eqx.field(static=True, default=0.05)
    decay: float = eqx.field(static=True, default=1e-4)

    def start(self) -> dict[str, Scalar]:
        """Zeros: the strengths where they start."""
        return {name: jnp.zeros(()) for name in self._strengths()}

    def strengths(self, x: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Rates and scales at x."""
        return values(x, self._strengths())

    def _strengths(self):
        own = {name: one.strength for name, one in self.augmentations.items()}
        return own | {"dropout": share(self.dropout)}

    def problem(self) -> Problem:
        return Problem(self.upper, self.lower)

    def upper(self, x, y, batch: Samples) -> Scalar:
        """Cross-entropy of the validation samples, without noise."""
        return cross_entropy(y, batch)

    def lower(self, x, y, batch: tuple[Array, Array, Array]) -> Scalar:
        """Cross-entropy of training samples, with noise of the strengths at x."""
        inputs, labels, seed = batch
        at = self.strengths(x)
        own, drop = jax.random.split(jax.random.key(seed))
        keys = jax.random.split(own, max(1, len(self.augmentations)))
        for key, (name, one) in zip(keys, self.augmentations.items(), strict=False):
            inputs = one.apply(at[name], inputs, key)
        first, *rest = y
        h = layer(first, inputs)
        for i, one in enumerate(rest):
            h = layer(one, dropped(at["dropout"], jax.nn.relu(h), jax.random.fold_in(drop, i)))
        loss = optax.softmax_cross_entropy_with_integer_labels(h, labels).mean()
        return loss + jnp.asarray(self.decay / 2, loss.dtype) * trees.dot(y, y)


def scores(y: Sequence, inputs: Array) -> Array:
    """The network without noise."""
    h = layer(y[0], inputs)
    for one in y[1:]:
        h = layer(one, jax.nn.relu(h))
    return h


def cross_entropy(y: Sequence, samples: Samples) -> Scalar:
    found = scores(y, samples[0])
    return optax.softmax_cross_entropy_with_integer_labels(found, samples[1]).mean()


def network(key: RandomKey, sizes: Sequence[int]) -> list[dict[str, Array]]:
    """Random dense layers, such as `network(key, (64, 128, 10))`."""
    pairs = zip(jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True)
    return [
        {"weight": jax.random.normal(k, (o, i)) * (2 / i) ** 0.5, "bias": jnp.zeros(o)}
        for k, i, o in pairs
    ]


def tune(
    tuning: Tuning,
    y0: Sequence,
    train_samples: Samples,
    valid_samples: Samples,
    *,
    steps: int = 1000,
    batch: int = 128,
    x_step: float = 0.02,
    y_step: float = 0.05,
    perturbations: int = 8,
    seed: int = 0,
    **options: Any,
) -> Result:
    """Learn strengths while the network is trained, once, by STN.

    Args:
        options: handed to `bl.solve`.

    Returns:
        `Result`: `tuning.strengths(result.x)`, the network `result.y`; the history has each
        strength.
    """
    how = methods.STN(
        FromOptax(optax.adam, x_step),
        Momentum(y_step, 0.9),
        response=HyperDense(),
        perturbations=perturbations,
        entropy=1e-3,
    )
    metrics = {name: Partial(_strength, tuning, name) for name in tuning.start()}
    return solve(
        tuning.problem(),
        how,
        tuning.start(),
        y0,
        data=data(train_samples, valid_samples, batch),
        steps=steps,
        key=jax.random.key(seed),
        **{"certify": False, "metrics": metrics, "log_every": max(1, steps // 25), **options},
    )


def _strength(tuning, name, x, y):
    return tuning.strengths(x)[name]


def constant(
    tuning: Tuning,
    x: Mapping[str, Scalar],
    y0: Sequence,
    train_samples: Samples,
    *,
    steps: int = 2000,
    batch: int = 128,
    y_step: float = 0.05,
    seed: int = 0,
) -> Sequence:
    """The network trained at constant strengths; `jax.vmap` over x trains a grid at once."""
    return train(
        tuning.problem(),
        x,
        y0,
        data=data(train_samples, train_samples, batch),
        update=Momentum(y_step, 0.9),
        steps=steps,
        key=jax.random.key(seed),
    )


def data(train_samples: Samples, valid_samples: Samples, batch: int) -> Data:
    """Rows and a seed for the noise below, validation rows above."""
    rows = min(batch, len(train_samples[1]))
    return Data(
        upper=valid_samples, lower=Partial(_draw, *train_samples, batch=rows), batch_size=None
    )


def _draw(inputs, labels, key, batch):
    own, seed = jax.random.split(key)
    rows = jax.random.choice(own, len(labels), (batch,), replace=False)
    return inputs[rows], labels[rows], jax.random.randint(seed, (), 0, 2**31 - 1)
