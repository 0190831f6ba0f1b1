"""
What a certificate says
=======================

Every result carries a certificate: how far ``(x, y)`` is from a solution, measured anew after the
run, and in words what is not known. Three runs: one that arrived, one that stopped too early, and
one whose question has no answer.
"""

# %%
# A penalty for each of ten features. MAID needs no step sizes.

import jax
import jax.numpy as jnp

import bilevel as bl

jax.config.update("jax_enable_x64", True)
keys = jax.random.split(jax.random.key(0), 2)
X = jax.random.normal(keys[0], (80, 10))
t = X[:, 0] - X[:, 1] + 0.5 * jax.random.normal(keys[1], (80,))
train, val = (X[:40], t[:40]), (X[40:], t[40:])


def error(y, batch):
    X, t = batch
    return jnp.mean((X @ y - t) ** 2)


problem = bl.Problem(
    lambda x, y, batch: error(y, batch),
    lambda x, y, batch: error(y, batch) + jnp.sum(jnp.exp(x) * y**2),
    upper_set=bl.sets.Box(-8.0, 4.0),
)
x0, y0, data = jnp.full(10, -2.0), jnp.zeros(10), bl.Data(upper=val, lower=train)


def run(method, steps):
    return bl.solve(problem, method, x0, y0, data=data, steps=steps, progress=False)


arrived = run(bl.methods.MAID(), 200)
print(arrived.status)
print(arrived.certificate)

# %%
# ``stationarity`` is the length of the projected step along the hypergradient at y*(x): zero at a
# solution of the smooth problem. ``tracking_error`` is how far y is from y*(x), and the residuals
# say how exactly both were found. A small stationarity with a large residual proves nothing.
#
# The same by SOBA, for 50 steps. ``ok`` says that the run ended as it was asked to. Whether it is
# far enough, only the certificate says.

early = run(bl.methods.SOBA(x_update=0.1, y_update=0.05, v_update=0.05), 50)
print("ok:", early.status.ok)
print(early.status)
for name, result in (("MAID", arrived), ("SOBA, 50 steps", early)):
    told = result.certificate
    print(f"{name}: stationarity {told.stationarity:.1e}")
    print(f"  y is {told.tracking_error:.1e} from y*(x)")

# %%
# Is it the method, or a wrong derivative of yours? ``check_hypergradient`` compares with
# differences of ``f(x, y*(x))``.

batch = bl.Batch(val, train)
print(bl.certificates.check_hypergradient(problem, x0, y0, batch, directions=2))

# %%
# And ``probe`` measures the curvature that step sizes follow from: y steps of 0.05 were far too
# short, and the x steps as well.

print(bl.certificates.probe(problem, x0, early.y, batch))

# %%
# A follower who does not care: the lower loss is flat along y[1], and the upper loss is not. So
# ``f(x, y*(x))`` is not a function of x, and the certificate says so in place of a number.

flat = bl.Problem(
    upper=lambda x, y, batch: jnp.sum((y - 1.0) ** 2),
    lower=lambda x, y, batch: jnp.sum((y[0] - x) ** 2),
)
method = bl.methods.F2SA(x_update=0.1, y_update=0.1, z_update=0.1)
lost = bl.solve(flat, method, jnp.zeros(1), jnp.zeros(2), steps=200, progress=False)
print(lost.certificate)
