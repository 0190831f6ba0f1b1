"""
Weights for noisy labels, with an Equinox model
===============================================

Of one class, six labels of ten are wrong: there are more wrong ones than right ones. Forty rows are
known to be right. The upper variable is a weight for each training row; the lower problem trains a
network on the weighted rows; the upper loss is that of the network on the forty rows.
"""

# %%
# The task: which of two interleaved moons a point lies on.

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bilevel as bl

draw = np.random.default_rng(0)


def moons(n):
    side, angle = draw.integers(0, 2, n), draw.uniform(0, np.pi, n)
    at = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    X = np.where(side[:, None], [1.0, 0.5] - at, at) + 0.15 * draw.normal(size=(n, 2))
    return X.astype(np.float32), side


(X, t), (X_clean, t_clean), (X_test, t_test) = moons(400), moons(40), moons(2000)
wrong = (t == 1) & (draw.random(400) < 0.6)
given = np.where(wrong, 1 - t, t)

# %%
# An Equinox model holds functions beside its arrays. ``eqx.partition`` takes the arrays out, and
# these are the lower variable; the rest is closed over. With flax, ``y`` is what ``model.init``
# returns, and ``model.apply(y, X)`` the logits; with haiku the same by ``transform``.

model = eqx.nn.MLP(2, 2, 16, 1, activation=jax.nn.tanh, key=jax.random.key(0))
y0, static = eqx.partition(model, eqx.is_array)


def losses(y, X, t):
    logits = jax.vmap(eqx.combine(y, static))(X)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), t[:, None], axis=1)[:, 0]


# %%
# A little decay makes the trained network unique near where it ends, and keeps it from learning
# the wrong labels by heart.


def upper(x, y, batch):
    return jnp.mean(losses(y, X_clean, t_clean))


def lower(x, y, batch):
    decay = 1e-3 * bl.trees.dot(y, y)
    return jnp.mean(jax.nn.sigmoid(x) * losses(y, X, given)) + decay


problem = bl.Problem(upper, lower)
method = bl.methods.SOBA(x_update=100.0, y_update=0.5, v_update=0.2)
result = bl.solve(problem, method, jnp.zeros(400), y0, steps=2000, progress=False, certify=False)
print(result.status)

# %%
# Wrong labels got small weights, by which they can be looked up. What the weights are for: the
# accuracy on test rows beside that of the same network trained on all labels as they are, and on
# the forty rows alone.

weights = jax.nn.sigmoid(result.x)
print(f"mean weight of right labels {weights[~wrong].mean():.2f}")
print(f"mean weight of wrong labels {weights[wrong].mean():.2f}")


def accuracy(y):
    return jnp.mean(losses(y, X_test, t_test) < jnp.log(2.0))


def trained(X, t):
    alone = bl.Problem(upper, lambda x, y, b: losses(y, X, t).mean() + 1e-3 * bl.trees.dot(y, y))
    return bl.lower.Gradient(0.5, 1000).solve(alone, jnp.zeros(1), y0).y


print(f"all labels as they are {accuracy(trained(X, given)):.3f}")
print(f"the forty rows alone   {accuracy(trained(X_clean, t_clean)):.3f}")
print(f"weighted               {accuracy(result.y):.3f}")

# %%
# With forty right rows of so simple a task, the gain over training on those alone is small. It
# grows where right rows are fewer or the task is harder; the measured cases are in the docs on
# cleaning.

# %%
# The weights, by what the labels are.

fig, ax = plt.subplots(layout="constrained")
edges = np.linspace(0, 1, 21)
ax.hist(weights[~wrong], edges, alpha=0.7, label="right label")
ax.hist(weights[wrong], edges, alpha=0.7, label="wrong label")
ax.set_xlabel("learned weight")
ax.set_ylabel("training rows")
ax.legend()
plt.show()
