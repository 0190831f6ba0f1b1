"""
Data from a generator, a stop, and a resumed run
================================================

Batches may come from any Python iterable. A run with a ``checkpoint`` folder goes on where it was
stopped, and ends in the same state, bit for bit, as a run that was never stopped.
"""

# %%
# Batches are drawn by NumPy. A resumed run draws the batches up to its step again and passes over
# them, so a loader has to give the same ones when it is started anew: here by its seed.

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
# A run of 400 steps that a callback stops after 200. A kill (``kill -9``, a power cut) runs no more
# code, so what is left is the last save: one every 30 seconds, or as often as
# ``bl.Checkpoint(folder, seconds=5)`` says. The rest is the same; start the script again.

with tempfile.TemporaryDirectory() as folder:
    stopped = run(400, checkpoint=folder, callbacks=[lambda step, state, row: step >= 200])
    print(stopped.status)
    resumed = run(400, checkpoint=folder)
    print(resumed.status)
    print(resumed.stats.notes)

# %%
# The same as without a stop, to the last bit.

whole = run(400)
print(np.array_equal(whole.x, resumed.x), np.array_equal(whole.y, resumed.y))
