"""Find the operation that made the data, and compare a search of two nodes with a random one.

First, ten data sets, two for each operation, are searched at once by `vmap`, in first and in second
order: the planted operation is found in 10 of 10. Then cells of three edges: DARTS finds a cell,
random search takes the best of as many trained cells as cost the same. Prints the losses on unseen
rows after training again; among so few cells (64) random search is as good or better.
`--save FILE` draws the shares of the operations. Paper: arXiv:1806.09055.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.apps import architecture
from bilevel.report import figures

WIDTH, ROWS, NAMES = 4, 256, list(architecture.OPERATIONS)
ONE = architecture.Cell(nodes=2)


def rows(key, make, n=ROWS):
    """Inputs, and targets with noise of deviation 0.1."""
    inputs, noise = jax.random.normal(key, (2, n, WIDTH))
    return inputs, make(inputs) + 0.1 * noise


def planted(seed, which, how, steps=500):
    """Shares of the operations, over the steps, where number `which` made the data."""
    plant, y, left, right, order = jax.random.split(jax.random.key(seed), 5)
    weights = ONE.weights(plant, WIDTH)["0-1"]

    def make(h):
        made = [op.apply(weights.get(name), h) for name, op in ONE.operations.items()]
        return jnp.stack(made)[which]

    problem = architecture.problem(ONE)
    data = bl.Data(upper=rows(left, make), lower=rows(right, make), batch_size=64)
    state = how.init(problem, ONE.logits(), ONE.weights(y, WIDTH))
    feed = data.feed(order, how.draws(problem))

    def chunk(state, _):
        state, _ = bl.run(problem, how, state, data=feed, steps=steps // 25)
        return state, jax.nn.softmax(state.x["0-1"])

    return jax.lax.scan(chunk, state, None, length=25)[1]


def ten(second_order):
    """Shares of ten seeds; seed i has operation i modulo 5."""
    how = architecture.method(second_order=second_order)
    seeds = jnp.arange(10)
    return jax.jit(jax.vmap(lambda s: planted(s, s % len(NAMES), how)))(seeds)


def task(seed):
    """A cell of three edges, its start, and rows to train on, to choose by and for the test."""
    cell = architecture.Cell(nodes=3)
    keys = jax.random.split(jax.random.key(seed), 6)
    draw = np.random.default_rng(seed)
    truth = {edge: str(draw.choice([n for n in NAMES if n != "zero"])) for edge in cell.edges}
    true = cell.weights(keys[0], WIDTH)
    parts = [rows(k, lambda h: cell.fixed(truth, true, h)) for k in keys[1:4]]
    return cell, truth, cell.weights(keys[4], WIDTH), parts


def against_random(seed, trials=None):
    """Losses on unseen rows: of DARTS, of random search at equal cost, and of the true cell."""
    cell, truth, y0, (train, valid, test) = task(seed)
    how = {"decay": 1e-3, "y_step": 0.01}
    darts = architecture.search(
        cell, y0, train, valid, decay=1e-3, how=architecture.method(y_step=0.01), seed=seed
    )
    trials = architecture.equal_trials(cell) if trials is None else trials
    drawn = architecture.random_search(cell, y0, train, valid, trials=trials, seed=seed, **how)
    found = {"DARTS": darts.architecture, "random search": drawn, "planted": truth}
    return {
        name: (one, architecture.retrain(cell, one, y0, train, **how)[1](test))
        for name, one in found.items()
    }


def draw(shares, file):
    """Shares of the operations over the steps, for the first five seeds."""
    with figures.style():
        figure = figures.new_figure(9.6, 2.4)
        for which, axes in enumerate(figure.subplots(1, 5, sharey=True)):
            for i, name in enumerate(NAMES):
                axes.plot(
                    np.arange(1, 26) * 20, shares[which, :, i],
                    color=figures.series_color(i), label=name,
                )  # fmt: skip
            axes.set_title(f"planted: {NAMES[which]}")
            axes.set_xlabel("step")
        handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper left", ncols=5)
        figure.savefig(file, dpi=130, facecolor="white")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", help="file of a picture")
    options = parser.parse_args()
    for order in (False, True):
        shares = ten(order)
        hits = int((shares[:, -1].argmax(1) == jnp.arange(10) % len(NAMES)).sum())
        print(f"{'second' if order else 'first'} order: planted operation found in {hits} of 10")
    if options.save:
        draw(np.asarray(shares), options.save)
    for seed in range(3):
        for name, (cell, value) in against_random(seed).items():
            print(f"seed {seed}, {name:>13}: loss {value:.4f} with {cell}")
