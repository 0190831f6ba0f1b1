"""
One penalty per feature
=======================

Ridge regression with a penalty of its own for each of 30 features, of which three matter. Cross
validation over a grid could try a few values of one common penalty; the hypergradient moves all
thirty at once.
"""

# %%
# The data: 60 rows to train on, 60 for validation, and many for an honest test.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import bilevel as bl

jax.config.update("jax_enable_x64", True)
keys = jax.random.split(jax.random.key(0), 2)
X = jax.random.normal(keys[0], (1000, 30))
t = X[:, 0] - 2 * X[:, 1] + X[:, 2] + 0.5 * jax.random.normal(keys[1], (1000,))
train, val, test = (X[:60], t[:60]), (X[60:120], t[60:120]), (X[120:], t[120:])

# %%
# Upper: the validation error. Lower: the penalised training error. Both get all rows, so there
# is no noise, and without a method ``solve`` chooses MAID, which needs no step sizes.


def error(y, batch):
    X, t = batch
    return jnp.mean((X @ y - t) ** 2)


def upper(x, y, batch):
    return error(y, batch)


def lower(x, y, batch):
    return error(y, batch) + jnp.sum(jnp.exp(x) * y**2)


problem = bl.Problem(upper, lower, upper_set=bl.sets.Box(-8.0, 4.0))
result = bl.solve(
    problem,
    x0=jnp.full(30, -2.0),
    y0=jnp.zeros(30),
    data=bl.Data(upper=val, lower=train),
    steps=100,
    progress=False,
)
print(result.status)

# %%
# Compare with the best common penalty, chosen on the same validation rows.

grid = jnp.linspace(-8, 4, 49)


def fitted(x):
    return bl.lower.argmin(problem, x, jnp.zeros(30), train)


common = jax.vmap(lambda p: fitted(jnp.full(30, p)))(grid)
best = common[jnp.argmin(jax.vmap(lambda y: error(y, val))(common))]
print(f"test error, one common penalty: {error(best, test):.4f}")
print(f"test error, one per feature:    {error(result.y, test):.4f}")

# %%
# The three features that matter got small penalties.

fig, ax = plt.subplots(layout="constrained")
ax.bar(range(30), result.x, color=["tab:orange"] * 3 + ["tab:blue"] * 27)
ax.set_xlabel("feature")
ax.set_ylabel("log penalty")
plt.show()
