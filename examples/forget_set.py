"""The 200 of 1000 digits that a model forgets least: those of which a copy stays.

Prints how many of the chosen digits have a copy: about 0.9 of those chosen by bilevel optimization,
0.2 of those drawn at random, about 0.4 of those with the smallest loss before unlearning; and the
share of each choice that the model still gets right after unlearning it (unlearning is judged by
the worst case, which is far above the random one). `--save FILE` draws it.
Paper: arXiv:2403.07362.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.apps import forget_set
from bilevel.apps.forget_set.digits import digits, train
from bilevel.report import figures

N, M, STEP = 1000, 200, 3e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", help="file of a picture")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    samples = digits(n=N, copies=M, seed=asked.seed)
    model = train(samples)
    options = {"rest": samples.rest(), "step_size": STEP}
    losses, forgetting = samples.losses(), samples.forgetting()
    found = forget_set.select(losses, forgetting, model, N, M, seed=asked.seed, **options)
    choices = {
        "worst case": np.asarray(found.rows),
        "smallest loss": np.argsort(np.asarray(losses(model)))[:M],
        "random": np.random.default_rng(asked.seed).permutation(N)[:M],
    }
    problem = forget_set.problem(losses, forgetting, M, **options)
    remembered = {}
    print(f"{'chosen by':14}  have a copy  still right after unlearning")
    for which, rows in choices.items():
        y = unlearn(problem, model, jnp.zeros(N).at[rows].set(1.0))
        right = np.asarray(jnp.argmax(samples.features @ y, 1) == samples.labels)[rows]
        remembered[which] = right.mean()
        print(f"{which:14}  {samples.copied[rows].mean():11.2f}  {right.mean():.2f}")
    if asked.save:
        draw(np.asarray(found.weights), samples.copied, remembered, asked.save)


def unlearn(problem: bl.Problem, model, weights):
    """One unlearning with these weights."""
    method = forget_set.method(step_size=0.0)
    return jax.jit(lambda w: method.step(problem, method.init(problem, w, model), bl.Batch()))(
        weights
    )[0].y


def draw(weights, copied, remembered, path: str) -> None:
    with figures.style():
        figure = figures.new_figure(8, 3)
        left, right = figure.subplots(1, 2)
        edges = np.linspace(0, 1, 21)
        for i, (name, which) in enumerate({"no copy": ~copied, "a copy stays": copied}.items()):
            left.hist(weights[which], edges, color=figures.series_color(i), alpha=0.7, label=name)
        left.set_yscale("log")
        left.set_xlabel("learned weight")
        left.set_ylabel("digits")
        left.legend()
        right.bar(list(remembered), list(remembered.values()), color=figures.series_color(0))
        right.set_title("still right after unlearning")
        figure.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main()
