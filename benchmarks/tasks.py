"""The two problems that every part times, in plain JAX: both sides are handed the same losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Task(NamedTuple):
    name: str
    upper: Callable
    lower: Callable
    x0: Any
    y0: Any
    upper_data: Any
    lower_data: Any
    batch_size: int


def logistic(n: int = 5000, d: int = 100, batch_size: int = 64) -> Task:
    """Logistic regression with one log penalty per feature."""
    key = jax.random.key(0)
    truth = jax.random.normal(key, (d,)) * (jnp.arange(d) < d // 10)

    def draw(key):
        at, noise = jax.random.split(key)
        X = jax.random.normal(at, (n, d)) / jnp.sqrt(d)
        return X, (X @ truth + 0.1 * jax.random.normal(noise, (n,)) > 0).astype(jnp.float32)

    def loss(y, batch):
        X, t = batch
        z = X @ y
        return jnp.mean(jax.nn.softplus(z) - t * z)

    def upper(x, y, batch):
        return loss(y, batch)

    def lower(x, y, batch):
        return loss(y, batch) + 0.5 * jnp.sum(jnp.exp(x) * y**2)

    train, val = draw(jax.random.key(1)), draw(jax.random.key(2))
    x0 = jnp.full(d, -4.0)
    return Task("logistic 100", upper, lower, x0, jnp.zeros(d), val, train, batch_size)


def cleaning(sizes: tuple[int, ...] = (784, 300, 10), n: int = 5000, batch_size: int = 128) -> Task:
    """Hyper-cleaning: one weight a training sample, a linear model or an MLP below."""
    keys = jax.random.split(jax.random.key(0), len(sizes) + 3)

    def draw(key):
        at, label = jax.random.split(key)
        return jax.random.normal(at, (n, sizes[0])), jax.random.randint(label, (n,), 0, sizes[-1])

    def network(y, X):
        for W, b in y[:-1]:
            X = jnp.tanh(X @ W + b)
        W, b = y[-1]
        return X @ W + b

    def cross_entropy(y, X, t):
        logp = jax.nn.log_softmax(network(y, X))
        return -jnp.take_along_axis(logp, t[:, None], axis=1)[:, 0]

    def upper(x, y, batch):
        X, t = batch
        return cross_entropy(y, X, t).mean()

    def lower(x, y, batch):
        i, X, t = batch
        decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(y))
        return (jax.nn.sigmoid(x[i]) * cross_entropy(y, X, t)).mean() + 1e-3 * decay

    y0 = [
        (jax.random.normal(key, (p, q)) / jnp.sqrt(p), jnp.zeros(q))
        for key, p, q in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]
    train, val = draw(keys[-1]), draw(keys[-2])
    name = "MLP " + "-".join(map(str, sizes)) if len(sizes) > 2 else f"linear {sizes[0]}x{sizes[1]}"
    return Task(name, upper, lower, jnp.zeros(n), y0, val, (jnp.arange(n), *train), batch_size)
