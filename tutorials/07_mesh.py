"""
A training loop of your own, on several devices
===============================================

``bl.solve`` is not needed: a method is two pure functions, ``init`` and ``step``, for a loop of
yours. Put arrays on a mesh, and the compiler splits the work. This page was made with four
simulated devices, which ``JAX_NUM_CPU_DEVICES=4 python 07_mesh.py`` gives to any CPU.
"""

# %%
# The mesh. Its axis is of type Auto: the compiler chooses where results of products lie. (``solve``
# makes any mesh one of these; with the Explicit axes that ``make_mesh`` makes by default, a loop of
# your own would have to say it product by product.)

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bilevel as bl

mesh = jax.make_mesh((len(jax.devices()),), ("rows",), axis_types=(AxisType.Auto,))
by_rows = NamedSharding(mesh, PartitionSpec("rows"))
print(mesh)

# %%
# The task: logistic regression with a penalty for each feature.

draw = np.random.default_rng(0)
X = draw.normal(size=(2048, 20)).astype(np.float32)
t = (X[:, :3].sum(1) + draw.normal(size=2048) > 0).astype(np.float32)
train, val = (X[:1024], t[:1024]), (X[1024:], t[1024:])


def loss(y, batch):
    X, t = batch
    return jnp.mean(jax.nn.softplus(X @ y) - t * (X @ y))


problem = bl.Problem(
    lambda x, y, batch: loss(y, batch),
    lambda x, y, batch: loss(y, batch) + 0.5 * jnp.sum(jnp.exp(x) * y**2),
    upper_set=bl.sets.Box(-8.0, 4.0),
)

# %%
# The loop. A step takes the state and a batch, and returns the next state and numbers to log. Each
# batch is put on the mesh, a quarter of its rows on each device. The state is donated: the next one
# takes its memory.

method = bl.methods.SOBA(x_update=0.5, y_update=0.3, v_update=0.3)
step = jax.jit(lambda state, batch: method.step(problem, state, batch), donate_argnums=0)


def train_on(place):
    rows = np.random.default_rng(1)
    state = method.init(problem, jnp.zeros(20), jnp.zeros(20))
    for k in range(301):
        i, j = rows.integers(0, 1024, (2, 128))
        halves = (val[0][i], val[1][i]), (train[0][j], train[1][j])
        state, info = step(state, bl.Batch(*jax.device_put(halves, place)))
        if k % 100 == 0:
            print(f"step {k}: upper loss {info['upper']:.4f}")
    return state


split = train_on(by_rows)

# %%
# The same on one device: equal up to rounding, since sums are taken in another order.

single = train_on(jax.devices()[0])
apart = np.abs(np.asarray(split.y) - np.asarray(single.y))
print("largest difference in y:", apart.max())

# %%
# Large variables can be split as well: ``y0 = bl.sharding.split(y0, mesh)`` before ``init``, and
# the method keeps its adjoint and momenta where y lies. With ``bl.solve`` none of the loop is
# needed.
