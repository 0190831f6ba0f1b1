"""Four sources of training rows: two good, one with the opposite sign, one of noise.

Prints the weights that ScaleBiO learns from 100 trusted rows (about 0.5, 0.5, 0, 0: both good
sources are kept) and those of DoGE (one good source is left almost out), and the validation loss of
models trained with them and with uniform weights. `--save FILE` draws the weights on the way.
Papers: arXiv:2406.19976 and arXiv:2310.15393.
"""

import argparse

import jax
import numpy as np

import bilevel as bl
from bilevel.apps import reweight
from bilevel.report import figures

NAMES = "good", "good too", "opposite", "noise"


def four_sources(seed: int):
    draw = np.random.default_rng(seed)
    truth, A, V = draw.normal(size=10), draw.normal(size=(800, 10)), draw.normal(size=(100, 10))
    source = np.repeat(np.arange(4), 200)
    b = np.choose(source, [A @ truth, A @ truth, -A @ truth, np.zeros(800)])
    b = b + np.choose(source, [0.1, 0.1, 0.1, 5.0]) * draw.normal(size=800)
    trusted = reweight.Rows(V, V @ truth + 0.1 * draw.normal(size=100))
    return reweight.Sources(reweight.Rows(A, b), source), trusted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", help="file of a picture")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    sources, trusted = four_sources(asked.seed)
    weighed = {f"weight of {name}": share(i) for i, name in enumerate(NAMES)}
    ours = reweight.scalebio(sources, trusted, reweight.squared, metrics=weighed, log_every=50)
    doge = reweight.doge(sources, trusted, reweight.squared)
    weights = {"ScaleBiO": ours.weights, "DoGE": np.asarray(doge.mean), "uniform": np.full(4, 0.25)}
    print(f"{'':9}  {'   '.join(f'{name:8}' for name in NAMES)}   validation loss")
    for which, w in weights.items():
        model = reweight.train(sources, w, reweight.squared)
        loss = float(reweight.losses_of(reweight.squared, model, trusted).mean())
        print(f"{which:9}  {'   '.join(f'{value:<8.3f}' for value in w)}   {loss:.4f}")
    if asked.save:
        draw(ours.result, asked.save)


def share(i: int):
    return lambda x, y: jax.nn.softmax(x)[i]


def draw(result: bl.Result, path: str) -> None:
    with figures.style():
        figure = figures.new_figure(8, 3)
        axes = figure.subplots()
        for i, name in enumerate(NAMES):
            path_of = result.history[f"weight of {name}"]
            axes.plot(result.history["step"], path_of, color=figures.series_color(i), label=name)
        axes.set_xlabel("step of ScaleBiO")
        axes.set_ylabel("weight")
        axes.legend()
        figure.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main()
