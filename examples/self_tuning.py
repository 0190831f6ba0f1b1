"""Learn dropout, input noise, contrast and shift of a digits classifier while it is trained, once.

200 digits to train on, 300 to tune on, 1297 for the test. Prints validation and test loss of the
self-tuning network, of the best of 16 constant strengths by validation loss, each trained as many
steps (2000) from the same start, and of training at the strengths at which STN begins. It beats
the last, and loses to the best constant. `--save FILE` draws the strengths over the
steps. Paper: arXiv:1903.03088.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from bilevel.apps import self_tuning
from bilevel.report import figures

TUNING = self_tuning.Tuning({
    "noise": self_tuning.noise(),
    "contrast": self_tuning.contrast(),
    "shift": self_tuning.shift(8, 8),
})  # fmt: skip
STEPS = 1000  # of STN, which trains twice a step


def digits(seed=0):
    """Samples to train on, to tune on, and for the test."""
    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    inputs, labels = jnp.asarray(inputs[order] / 16, float), jnp.asarray(labels[order])
    cuts = slice(200), slice(200, 500), slice(500, None)
    return [(inputs[cut], labels[cut]) for cut in cuts]


def constants(y0, train, n=16, seed=0):
    """Networks trained at n strengths, the first at those of the start, on a leading axis."""
    draw = np.random.default_rng(seed)
    x = {name: jnp.asarray(draw.uniform(-1, 3, n)).at[0].set(0.0) for name in TUNING.start()}
    return jax.vmap(lambda x: self_tuning.constant(TUNING, x, y0, train, steps=2 * STEPS))(x)


def compare(seed=0, n=16):
    """Losses on validation and test samples, and the run of STN."""
    train, valid, test = digits(seed)
    y0 = self_tuning.network(jax.random.key(seed), (64, 128, 10))
    result = self_tuning.tune(TUNING, y0, train, valid, steps=STEPS, seed=seed)
    grid = constants(y0, train, n, seed)
    losses = {
        name: np.asarray(jax.vmap(self_tuning.cross_entropy, (0, None))(grid, samples))
        for name, samples in (("validation", valid), ("test", test))
    }
    best = int(np.nanargmin(losses["validation"]))
    own = [float(self_tuning.cross_entropy(result.y, samples)) for samples in (valid, test)]
    found = {"self-tuning": own}
    for name, i in (("best constant", best), ("strengths of the start", 0)):
        found[name] = [float(losses["validation"][i]), float(losses["test"][i])]
    return found, result


def draw(result, file):
    """The strengths over the steps."""
    with figures.style():
        figure = figures.new_figure(6.4, 2.8)
        axes = figure.subplots()
        for i, name in enumerate(TUNING.start()):
            axes.plot(
                result.history["step"], result.history[name],
                color=figures.series_color(i), label=name,
            )  # fmt: skip
        axes.set_title("Strengths while the network is trained")
        axes.set_xlabel("step")
        axes.legend()
        figure.savefig(file, dpi=130, facecolor="white")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", help="file of a picture")
    options = parser.parse_args()
    found, result = compare()
    for name, (valid, test) in found.items():
        print(f"{name:>22}: validation loss {valid:.4f}, test loss {test:.4f}")
    strengths = {name: round(float(v), 3) for name, v in TUNING.strengths(result.x).items()}
    print(f"learned strengths: {strengths}")
    if options.save:
        draw(result, options.save)
