"""Fifty images that stand for 1297 digits.

Starts from 50 random digits, 5 of each class, and learns images and targets. Prints the test
accuracy of random networks whose last layer is fitted on 50 random digits (about 0.87), on the 50
centres of k-means with the labels of their digits, and on the 50 learned images (the best of the
three). `--save FILE` draws the images before and after. Paper: arXiv:2310.06511.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from bilevel.apps import distillation
from bilevel.apps.distillation import Learned
from bilevel.report import figures


def digits(seed=0):
    """1297 images and one-hot targets to learn from; 500 images and labels for the test."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = jnp.asarray(images[order] / 16, float).reshape(-1, 8, 8, 1), labels[order]
    one_hot = jax.nn.one_hot(labels[:1297], 10)
    return (images[:1297], one_hot), (images[1297:], jnp.asarray(labels[1297:]))


def few(train, seed=0):
    """Five random images of each class."""
    labels, draw = np.asarray(train[1]).argmax(1), np.random.default_rng(seed)
    rows = [draw.choice(np.flatnonzero(labels == c), 5, replace=False) for c in range(10)]
    return Learned(*(array[np.concatenate(rows)] for array in train))


def centres(train, seed=0):
    """Fifty centres of k-means, with the mean target of their images."""
    flat, targets = np.asarray(train[0]).reshape(-1, 64), np.asarray(train[1])
    means = KMeans(50, n_init=3, random_state=seed).fit(flat)
    own = np.stack([targets[means.labels_ == c].mean(0) for c in range(50)])
    images = means.cluster_centers_.reshape(-1, 8, 8, 1)
    return Learned(jnp.asarray(images, float), jnp.asarray(own, float))


def compare(seed=0, steps=600):
    """The three small data sets, and the test accuracies of five networks on each."""
    train, test = digits(seed)
    start = few(train, seed)
    found = {
        "random": start,
        "k-means": centres(train, seed),
        "learned": distillation.distil(*train, start, steps=steps, seed=seed).learned,
    }
    return {name: (one, distillation.accuracy(one, *test)) for name, one in found.items()}


def draw(found, file):
    """The images at the start and at the end, a row for two classes each."""
    with figures.style():
        figure = figures.new_figure(9.6, 2.7)
        for axes, name in zip(figure.subplots(1, 2), ("random", "learned"), strict=True):
            images = np.asarray(found[name][0].images).reshape(5, 10, 8, 8)
            page = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
            axes.imshow(np.block([[*row] for row in page]), cmap="gray_r", vmin=0, vmax=1)
            axes.set_title(f"{name}: test accuracy {found[name][1].mean():.3f}")
            axes.set_axis_off()
        figure.savefig(file, dpi=110, facecolor="white")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", help="file of a picture")
    options = parser.parse_args()
    found = compare()
    for name, (_, values) in found.items():
        print(f"50 {name:>7} images: test accuracy {values.mean():.3f} ± {values.std():.3f}")
    if options.save:
        draw(found, options.save)
