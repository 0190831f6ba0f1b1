"""
Data from a generator, a stop, and a resumed run
================================================

Batches may come from any Python iterable. A run with a ``checkpoint`` folder goes on where it was
stopped, and ends in the same state, bit for bit, as a run that was never stopped.
"""

# %%
# Batches are drawn by NumPy. The generator is made anew by the loader, as data loaders are.

import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl

jax.config.update("jax_enable_x64", True)


class Loader:
    """An endless loader: every pass gives the same batches."""

    def __init__(self, seed):
        self.seed = seed

    def __iter__(self):
        draw = np.random.default_rng(self.seed)
        while True:
            X = draw.normal(size=(16, 5))
            yield X, X[:, 0] + 0.3 * draw.normal(size=16)


def error(y, batch):
    X, t = batch
    return jnp.mean((X @ y - t) ** 2)


problem = bl.Problem(
    lambda x, y, batch: error(y, batch),
    lambda x, y, batch: error(y, batch) + jnp.sum(jnp.exp(x) * y**2),
    upper_set=bl.sets.Box(-8.0, 4.0),
)


def run(steps, **options):
    return bl.solve(
        problem,
        bl.methods.SOBA(x_update=0.2, y_update=0.1),
        x0=jnp.zeros(5),
        y0=jnp.zeros(5),
        data=bl.Data(upper=Loader(1), lower=Loader(2)),
        steps=steps,
        log_every=50,
        progress=False,
        certify=False,
        **options,
    )


# %%
# A run of 400 steps that a callback stops after 200, as a kill might.

with tempfile.TemporaryDirectory() as folder:
    stopped = run(400, checkpoint=folder, callbacks=[lambda step, state, row: step >= 200])
    print(stopped.status)
    resumed = run(400, checkpoint=folder)
    print(resumed.status)

# %%
# The same as without a stop, to the last bit.

whole = run(400)
print(np.array_equal(whole.x, resumed.x), np.array_equal(whole.y, resumed.y))
