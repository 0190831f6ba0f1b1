"""Prune a digits classifier to 1 % of its weights, by BiP and by magnitude.

Prints the test accuracy of the dense network (about 0.98), of BiP (above 0.96), and of keeping the
largest weights at once and training them (0.2 to 0.5: whole layers are cut off), and how many
weights each keeps in its three layers. `--save FILE` draws it. Paper: arXiv:2210.04092.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from bilevel.apps import pruning
from bilevel.report import figures

SIZES, DENSITY = (64, 256, 128, 10), 0.01


def network(key):
    """Random weights of a network with two hidden layers."""
    shapes = zip(jax.random.split(key, 3), SIZES[:-1], SIZES[1:], strict=True)
    return [(jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, jnp.zeros(n)) for k, m, n in shapes]


def scores(params, inputs):
    for weights, bias in params[:-1]:
        inputs = jax.nn.relu(inputs @ weights + bias[None])
    weights, bias = params[-1]
    return inputs @ weights + bias[None]


def loss(params, batch):
    inputs, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(scores(params, inputs), labels).mean()


def digits(seed):
    """1297 digits to train on, 500 for the test."""
    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    inputs, labels = jnp.asarray(inputs[order] / 16, float), jnp.asarray(labels[order])
    return (inputs[:1297], labels[:1297]), (inputs[1297:], labels[1297:])


def accuracy(params, samples):
    return float((scores(params, samples[0]).argmax(1) == samples[1]).mean())


def compare(seed=0, density=DENSITY, steps=2000):
    """The networks: dense, by BiP, by magnitude at once."""
    train, test = digits(seed)
    everything, few = pruning.Unstructured(1.0), pruning.Unstructured(density)
    dense = pruning.one_shot(loss, network(jax.random.key(seed)), train, everything, steps=steps)
    start = dense.params
    found = {
        "dense": dense,
        "BiP": pruning.prune(loss, start, train, few, steps=steps, seed=seed),
        "magnitude": pruning.one_shot(loss, start, train, few, steps=steps, seed=seed),
    }
    return {name: (accuracy(one.params, test), one) for name, one in found.items()}


def draw(found, file):
    """Test accuracy, and weights kept in each layer."""
    with figures.style():
        figure = figures.new_figure(7.2, 2.8)
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        for i, (name, (value, one)) in enumerate(found.items()):
            left.bar(name, value, color=figures.series_color(i))
            left.annotate(f"{value:.3f}", (i, value), ha="center", va="bottom")
            if name != "dense":
                counts = [float(m.sum()) for m in one.masks.values()]
                places = np.arange(3) + 0.36 * (i - 1.5)
                right.bar(places, counts, 0.34, color=figures.series_color(i), label=name)
                for place, count in zip(places, counts, strict=True):
                    right.annotate(f"{count:.0f}", (place, count), ha="center", va="bottom")
        left.set_title("Test accuracy"), left.set_ylim(0, 1.12)
        right.set_title(f"Weights kept at {DENSITY:.0%} density")
        right.set_xticks(range(3), ["64 to 256", "256 to 128", "128 to 10"])
        right.legend()
        figure.savefig(file, dpi=150, facecolor="white")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", help="file of a picture")
    options = parser.parse_args()
    found = compare()
    for name, (value, one) in found.items():
        kept = [int(mask.sum()) for mask in one.masks.values()]
        print(f"{name:>9}: test accuracy {value:.3f}, weights kept in each layer {kept}")
    if options.save:
        draw(found, options.save)
