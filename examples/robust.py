"""A two-stage knapsack by a learned second stage, against listing everything.

It should print a gap of at most 3 %, and many fewer second stages solved than listing takes.
`--save FILE` draws what the network says of every first stage against its worst case.
"""

import argparse

import numpy as np

from bilevel.apps import robust
from bilevel.apps.robust.knapsack import enumerate_all, first_stages, scenarios, worst_case
from bilevel.report import figures


def draw(k, value, found, file: str) -> None:
    """Each first stage once: its worst case as the network sees it, and as it is."""
    choices, falls = first_stages(k), scenarios(k)
    exact = np.array([worst_case(k, x) for x in choices])
    learned = choices @ k.now + np.min([value(k, choices, xi[None].repeat(len(choices), 0))
                                        for xi in falls], axis=0)  # fmt: skip
    with figures.style():
        figure = figures.new_figure(5.6, 3.6)
        axes = figure.subplots()
        axes.plot(exact, learned, ".", markersize=3, label="a first stage")
        axes.axline((exact.max(), exact.max()), slope=1, color=figures.QUIET, linewidth=0.8)
        chosen = (choices == found.x).all(1)
        axes.plot(exact[chosen], learned[chosen], "s", markersize=7, label="chosen")
        best = exact.argmax()
        axes.plot(exact[best], learned[best], "o", markersize=7, label="best of all", mfc="none")
        axes.set_xlabel("value in its worst scenario"), axes.set_ylabel("as the network says")
        axes.legend(loc="upper left")
        figure.savefig(file, dpi=110, facecolor="white")


def main(save: str | None = None) -> None:
    k = robust.instance(seed=0)
    _, best = enumerate_all(k)
    value = robust.fit(k)
    found = robust.choose(k, value)
    listed = len(first_stages(k)) * len(scenarios(k))
    print(f"best of all {best:.2f}, learned {found.value:.2f}, gap {1 - found.value / best:.2%}")
    print(f"second stages solved: {found.solved:,} against {listed:,}; scenarios {found.scenarios}")
    if save:
        draw(k, value, found, save)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", help="file of a picture")
    main(parser.parse_args().save)
