"""Power control that does not forget: three episodes of channels, and 133 samples of memory.

A network learns on 400 channels each of Rayleigh fading, of Rice fading, and of users close to each
other. After the last episode, sum rate on test channels relative to WMMSE:

    largest weights: rayleigh 0.935, rice 0.944, near 0.979
    reservoir: rayleigh 0.937, rice 0.946, near 0.979
    nothing: rayleigh 0.922, rice 0.934, near 0.981
    all: rayleigh 0.876, rice 0.879, near 0.966
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

from bilevel.apps import wireless
from bilevel.apps.wireless import Memory
from bilevel.report import figures

jax.config.update("jax_enable_x64", True)
EPISODES = ("rayleigh", "rice", "near")


def episodes(n: int) -> tuple[list[wireless.Samples], list[wireless.Samples]]:
    """n channels of each kind to learn from, and 400 for the test."""
    return tuple(
        [
            wireless.samples(jnp.asarray(wireless.channels(kind, count, seed=seed + i)))
            for i, kind in enumerate(EPISODES)
        ]
        for count, seed in ((n, 0), (400, 100))
    )


def main(n: int = 400, steps: int = 1000, save: Path | None = None) -> dict[str, list[float]]:
    train, test = episodes(n)
    paths, last = {}, {}
    for memory in Memory:
        nets = wireless.learn(train, memory, size=n // 3, steps=steps)
        paths[memory.value] = [[wireless.served(x, one) for one in test] for x in nets]
        last[memory.value] = paths[memory.value][-1]
        told = ", ".join(f"{k} {r:.3f}" for k, r in zip(EPISODES, last[memory.value], strict=True))
        print(f"{memory.value}: {told}")
    if save is not None:
        picture(paths).savefig(save, dpi=100, facecolor="white")
    return last


def picture(paths: dict[str, list[list[float]]]):
    """A panel for each kind of channel: how well it is served after each episode."""
    with figures.style():
        figure = figures.new_figure(9.6, 3.2)
        panels = figure.subplots(1, len(EPISODES), sharey=True)
        for k, (axes, kind) in enumerate(zip(panels, EPISODES, strict=True)):
            for i, (name, path) in enumerate(paths.items()):
                ratios = [after[k] for after in path]
                color, mark = figures.series_color(i), figures.MARKERS[i]
                if len(ratios) == 1:  # joint training ends once
                    axes.axhline(ratios[0], color=color, linestyle="--", label=name)
                else:
                    axes.plot([1, 2, 3], ratios, color=color, marker=mark, label=name)
            axes.set_title(f"test: {kind}")
            axes.set_xlabel("after episode")
            axes.set_xticks([1, 2, 3])
        panels[0].set_ylabel("rate / rate of WMMSE")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=4)
        return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, help="where the picture goes")
    main(save=parser.parse_args().save)
