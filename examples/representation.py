"""Features shared by many tasks with few samples, learned on a few tasks a step or on all of them.

By itself: 20 regression tasks of 8 inputs and 6 samples each, whose targets depend on the same two
directions. Prints the loss on 30 new tasks with untrained features and after each method, with its
95 % interval. With `--omniglot FILE.zip ...` (the archives of github.com/brendenlake/omniglot) it
prints the accuracy on 5-way 5-shot tasks of alphabets that were not seen. A step of BSVRBv2 takes
a tenth of the tasks, at two points; so it gets five times the steps of SOBA, which takes all.
`--save FILE` draws the results.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

from bilevel.apps import representation as rep
from bilevel.report import figures

HELD_OUT = ("Sanskrit", "Tagalog")


def regression(seed: int):
    """Train tasks, new tasks, network, and what both levels are told of the loss."""
    keys = jax.random.split(jax.random.key(seed), 3)
    basis = jnp.linalg.qr(jax.random.normal(keys[0], (8, 2)))[0]
    train, new = (
        rep.subspace(key, m, basis=basis, n=6, noise=0.05)
        for key, m in zip(keys[1:], (20, 30), strict=True)
    )
    return train, new, rep.make_linear(8, 2), {"loss": rep.squared, "decay": 0.05}


def characters(files, seed: int):
    """The same for Omniglot."""
    found = rep.omniglot(files)
    others = sorted(set(found.alphabets) - set(HELD_OUT))
    train = rep.episodes(found.of(others).pictures, 30, seed=seed)
    new = rep.episodes(found.of(HELD_OUT).pictures, 60, queries=10, seed=seed + 1)
    return train, new, rep.make_convnet(15, 5, channels=(8,), width=32), {}


def draw(found: dict[str, rep.Judged], what: str, path: Path) -> None:
    with figures.style():
        figure = figures.new_figure(7.2, 2.4)
        axes = figure.subplots()
        names = list(found)[::-1]
        axes.barh(
            names,
            [found[name].mean for name in names],
            xerr=[found[name].half for name in names],
            color=figures.series_color(0),
            ecolor=figures.QUIET,
            height=0.6,
        )
        axes.set_xlabel(f"{what} on new tasks, and its 95 % interval")
        figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--omniglot", nargs="+", type=Path, metavar="FILE.zip")
    parser.add_argument("--steps", type=int, default=60, help="of SOBA")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    given = characters(asked.omniglot, asked.seed) if asked.omniglot else regression(asked.seed)
    train, new, network, options = given
    what = "accuracy" if asked.omniglot else "loss"
    rate = 3e-3 if asked.omniglot else 2e-2
    steps = asked.steps if asked.omniglot else 10 * asked.steps
    x0, _ = rep.starts(network, 1, jax.random.key(asked.seed))
    found = {"untrained": rep.judge(x0, network, new, **options)}
    print(f"{what} on new tasks\n{'untrained':10} {found['untrained']}", flush=True)
    for name, count in (("BSVRBv2", 5 * steps), ("SOBA", steps)):
        result = rep.learn(
            train, network, name, steps=count, rate=rate, drawn=len(train) // 10, seed=asked.seed,
            **options,
        )  # fmt: skip
        found[name] = rep.judge(result.x, network, new, **options)
        print(f"{name:10} {found[name]}", flush=True)
    if asked.save is not None:
        draw(found, what, asked.save)


if __name__ == "__main__":
    main()
