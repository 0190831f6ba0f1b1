"""Four lower problems of a few steps: reasoning, quantisation, merging, design.

Facts learned in three steps are recalled in the mean of 200 worlds with 6 distractors: 1.00 of the
answers are right; a network that reads the facts has 0.19 after as many training steps. Calibrated
on 64 images, a network of 3 bits is 0.007 nats from the full one (raw images 0.012, rounding to
nearest 0.089). A sequence is designed that scores more than 0.93 of all, from 300 sequences of
which none scores more than half of all. Merging is where the toy does not bear out the paper: the
learned mask has an accuracy of 0.84 in the mean of three tasks, plain task arithmetic 0.93.
`--save FILE` draws the four.
"""

import argparse
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from bilevel.apps.few_steps import design, merging, nets, quantization, reasoning
from bilevel.report import figures

jax.config.update("jax_enable_x64", True)


def digits(seed: int = 0):
    """Handwritten digits in a random order."""
    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    return jnp.asarray(inputs[order] / 16, jnp.result_type(float)), jnp.asarray(labels[order])


def facts(steps: int = 150) -> tuple[float, float]:
    """RECKONING against the same network that reads the facts, with 6 distractors."""
    test = reasoning.worlds(jax.random.key(99), 200, distractors=6)
    x = reasoning.learn(steps=steps, key=jax.random.key(0))
    net = reasoning.learn_in_context(steps=steps, key=jax.random.key(0))
    return reasoning.accuracy(x, test), reasoning.accuracy_in_context(net, test)


def rounding(seed: int = 0, bits: int = 3) -> dict[str, float]:
    """Divergence of quantised networks from the full one on test images."""
    inputs, labels = digits(seed)
    net = nets.start((64, 32, 10), key=jax.random.key(seed))
    net = nets.fit(net, inputs[:1000], labels[:1000], steps=400)
    calibration = inputs[:64]
    found = {
        "to nearest": quantization.to_nearest(net, bits),
        "raw images": quantization.calibrate_raw(net, calibration, bits=bits),
        "MetaAug": quantization.calibrate(net, calibration, bits=bits, key=jax.random.key(seed)),
    }
    return {
        name: float(quantization.distance(net, y, inputs[1000:], bits)) for name, y in found.items()
    }


def merge(seed: int = 0) -> dict[str, float]:
    """Accuracy of one network for three tasks, in the mean of the tasks."""
    inputs, labels = digits(seed)
    base = nets.start((64, 32, 10), key=jax.random.key(seed))
    base = nets.fit(base, inputs[:200], labels[:200], steps=60)
    own = ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))
    classes = jnp.stack([jnp.isin(jnp.arange(10), jnp.array(digits)) for digits in own])
    masks = [np.isin(labels, digits) for digits in own]
    first = np.arange(len(labels)) < 1000
    tuned = [nets.fit(base, inputs[m & first], labels[m & first], steps=200) for m in masks]
    parts = merging.merge_of(base, tuned)
    count = min((m & ~first).sum() for m in masks)
    unlabelled = jnp.stack([inputs[m & ~first][:count] for m in masks])
    x, y = merging.learn(parts, unlabelled, classes, key=jax.random.key(seed))

    def mean(net) -> float:
        shares = []
        for m, allowed in zip(masks, classes, strict=True):
            found = jnp.where(allowed[None], nets.scores(net, inputs[m & ~first]), -jnp.inf)
            shares.append(float((found.argmax(1) == labels[m & ~first]).mean()))
        return float(np.mean(shares))

    plain = merging.merged(parts, jnp.full(3, 0.3))
    masked = merging.merged(parts, y, merging.hard(x))
    return {"task arithmetic": mean(plain), "learned mask": mean(masked)}


def sequence(seed: int = 0) -> tuple[float, float]:
    """Share of all 65 536 sequences that score less: the design, and the best one known."""
    draw = np.random.default_rng(seed)
    every = np.array(list(itertools.product(range(4), repeat=8)))
    alone, pairs = draw.normal(size=(8, 4)), draw.normal(size=(7, 4, 4)) / 2
    scores = alone[np.arange(8), every].sum(1)
    scores += pairs[np.arange(7), every[:, :-1], every[:, 1:]].sum(1)
    rows = draw.choice(np.flatnonzero(scores < np.median(scores)), 300, replace=False)
    found, _ = design.design(design.known(jnp.asarray(every[rows]), jnp.asarray(scores[rows])))
    value = scores[(every == np.asarray(found)).all(1)][0]
    return float((scores < value).mean()), float((scores < scores[rows].max()).mean())


def draw(found: dict[str, dict[str, float]], file: str) -> None:
    """A panel a use; what is learned bilevel in a colour of its own."""
    with figures.style():
        figure = figures.new_figure(9.6, 2.6)
        for axes, (title, values) in zip(figure.subplots(1, 4), found.items(), strict=True):
            ours = [name in ("adapted", "MetaAug", "learned mask", "design") for name in values]
            colors = [figures.series_color(0) if mine else figures.QUIET for mine in ours]
            bars = axes.bar(range(len(values)), values.values(), color=colors, width=0.6)
            axes.bar_label(bars, fmt="%.3g")
            axes.set_xticks(range(len(values)), [name.replace(" ", "\n") for name in values])
            axes.set_title(title), axes.margins(y=0.15), axes.grid(visible=False, axis="x")
        figure.savefig(file, dpi=110, facecolor="white")


def main(save: str | None = None) -> None:
    right = dict(zip(("adapted", "in context"), facts(), strict=True))
    print("answers right: " + ", ".join(f"{name} {value:.2f}" for name, value in right.items()))
    divergence, accuracy = rounding(), merge()
    for title, found in (("divergence", divergence), ("accuracy", accuracy)):
        print(f"{title}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    ranks = dict(zip(("design", "best known"), sequence(), strict=True))
    print("rank: " + ", ".join(f"{name} {value:.3f}" for name, value in ranks.items()))
    if save:
        titles = "Right answers", "Nats from the full", "Accuracy of a merge", "Rank of a sequence"
        draw(dict(zip(titles, (right, divergence, accuracy, ranks), strict=True)), save)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", help="file of a picture")
    main(parser.parse_args().save)
