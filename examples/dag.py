"""Planted graphs found again from samples: TOPO, and NOTEARS beside it.

Random linear models on 20 variables, two edges a variable, noise of variance one, 1000 samples.
For each graph: the score that was found less that of the true order (a negative number is better),
and the structural Hamming distance to the true graph:

    TOPO distances 0 0 0, NOTEARS 2 2 1; every score is below that of the true order.
"""

import argparse
from pathlib import Path

import numpy as np

from bilevel.apps.dag import figures, graphs
from bilevel.apps.dag.notears import notears
from bilevel.apps.dag.score import covariance, score
from bilevel.apps.dag.topo import topo


def main(d: int = 20, seeds: int = 3, save: Path | None = None) -> list[tuple[float, int, int]]:
    rows = []
    for seed in range(seeds):
        sampled = graphs.sample(d, 1000, edges=2, seed=seed)
        C = covariance(sampled.data)
        found = topo(C, np.random.default_rng(seed).permutation(d))
        excess = found.score - float(score(C, sampled.order))
        graph = graphs.cut(found.W)
        distances = [graphs.distance(W, sampled.W) for W in (graph, graphs.cut(notears(C)))]
        rows.append((excess, *distances))
        print(f"graph {seed}: score {excess:+.5f}, TOPO {distances[0]}, NOTEARS {distances[1]}")
        if save is not None and seed == 0:
            figure = figures.graph(graph, [str(i) for i in range(d)])
            figure.savefig(save, dpi=110, facecolor="white")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, help="where the picture of the first graph goes")
    main(save=parser.parse_args().save)
