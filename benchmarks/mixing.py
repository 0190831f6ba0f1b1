"""Which of eight sources help: six families of instructions, and two corrupted copies.

`python -m benchmarks.mixing --data FOLDER`, with `NAME.jsonl` of prompts and completions in it. A
model of characters (a network of one hidden layer that sees the six before, 7 thousand parameters)
is trained from nothing on the beginnings of the answers. 20 answers of each of the six families are
trusted and make up the target; others are kept for the test. Each way gives weights, with which a
new model is trained in as many steps on as many rows; the oracle knows which copies are corrupted.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

import bilevel as bl
from benchmarks.harness import RESULTS
from bilevel import report
from bilevel.apps.llm.mixing import doge, mixture, scalebio
from bilevel.apps.llm.mixing.task import training
from bilevel.report import figures
from bilevel.schedules import Cosine
from bilevel.updates import FromOptax

FAMILIES = "common", "cosmos", "dream", "gigaword", "samsum", "xsum"
SHUFFLED, CIPHER = "samsum, letters shuffled", "xsum, other letters"
NAMES = (*FAMILIES, SHUFFLED, CIPHER)
WINDOW, ANSWER = 6, 24  # characters before, and characters of an answer
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALPHABET = "\0\n " + LETTERS + "0123456789.,;:?!'\"()-#"  # all else is left out
EMBED, HIDDEN = 12, 48
TRUSTED, TEST = 20, 60  # rows of a family
ROWS, TARGET_ROWS = 3, 12  # of every source, and of the target, in a step
WEIGHT_STEPS, STEPS = 1000, 500  # of the weights, and of a training
RATE, PENALTY, X_RATE, DOGE_RATE = 1e-2, 10.0, 0.01, 0.1
LOOKS = 40  # at the weights on the way
SEEDS = 5


class Rows(NamedTuple):
    """Answers, character by character."""

    before: Int[Array, "rows answer window"]
    character: Int[Array, "rows answer"]
    mask: Bool[Array, "rows answer"]


def start(seed: int) -> dict[str, Array]:
    shapes = {
        "embed": (len(ALPHABET), EMBED),
        "in": (WINDOW * EMBED, HIDDEN),
        "out": (HIDDEN, len(ALPHABET)),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    draw = jax.nn.initializers.glorot_normal()
    drawn = zip(shapes.items(), keys, strict=True)
    return {name: draw(key, shape, jnp.float32) for (name, shape), key in drawn}


def loss(y: dict[str, Array], rows: Rows) -> Float[Array, " rows"]:
    """Mean over the characters of each answer."""
    seen = y["embed"][rows.before].reshape(*rows.before.shape[:2], -1)
    scores = jax.nn.log_softmax(jnp.tanh(seen @ y["in"]) @ y["out"])
    found = jnp.take_along_axis(scores, rows.character[..., None], axis=2)[..., 0]
    return -jnp.where(rows.mask, found, 0).sum(axis=1) / rows.mask.sum(axis=1)


class World(NamedTuple):
    """Rows of one seed."""

    sources: tuple[Rows, ...]
    target: Rows
    test: Rows


def read(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Prompts and answers of the families, in lower case and in our alphabet."""

    def plain(text: str) -> str:
        return "".join(letter for letter in text.lower() if letter in ALPHABET)

    found = {}
    for name in FAMILIES:
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        rows = [(plain(row["prompt"]), plain(row["completion"])) for row in map(json.loads, lines)]
        found[name] = [row for row in rows if len(row[1]) > 3]
    return found


def encoded(rows: list[tuple[str, str]]) -> Rows:
    """What is not there is character 0."""
    number = {letter: i for i, letter in enumerate(ALPHABET)}
    text = np.zeros((len(rows), WINDOW + ANSWER), np.int32)
    for i, (prompt, answer) in enumerate(rows):
        end = [number[letter] for letter in prompt[-WINDOW:]]
        begun = [number[letter] for letter in answer[:ANSWER]]
        text[i, WINDOW - len(end) : WINDOW + len(begun)] = end + begun
    before = np.lib.stride_tricks.sliding_window_view(text[:, :-1], WINDOW, axis=1)
    said = text[:, WINDOW:]
    return Rows(jnp.asarray(before), jnp.asarray(said), jnp.asarray(said > 0))


def world(families: dict[str, list[tuple[str, str]]], seed: int) -> World:
    draw = np.random.default_rng(seed)
    cipher = str.maketrans(LETTERS, "".join(draw.permutation(list(LETTERS))))
    learn, trusted, test = {}, [], []
    for name, rows in families.items():
        order = [rows[i] for i in draw.permutation(len(rows))]
        trusted += order[:TRUSTED]
        test += order[TRUSTED : TRUSTED + TEST]
        learn[name] = order[TRUSTED + TEST :]
    learn[SHUFFLED] = [(p, "".join(draw.permutation(list(a)))) for p, a in learn["samsum"]]
    learn[CIPHER] = [(p, a.translate(cipher)) for p, a in learn["xsum"]]
    return World(tuple(encoded(learn[name]) for name in NAMES), encoded(trusted), encoded(test))


def solve(problem, method, x0, data, seed: int, steps: int, **more: Any) -> bl.Result:
    more = {"log_every": 500} | more
    return bl.solve(
        problem, method, x0, jnp.zeros(()), data=data, steps=steps, key=jax.random.key(seed),
        certify=False, progress=False, **more,
    )  # fmt: skip


def adam(rate: float, steps: int) -> FromOptax:
    return FromOptax(optax.adam, Cosine(rate, steps))


def by_scalebio(given: World, seed: int) -> np.ndarray:
    """The weights on the way, a row a look."""
    path, n = [], WEIGHT_STEPS
    solve(
        scalebio.problem(loss, PENALTY), scalebio.method(adam(RATE, n), adam(X_RATE, n)),
        scalebio.start(len(NAMES), start(seed)),
        mixture.data(given.sources, given.target, ROWS, TARGET_ROWS), seed, n,
        log_every=n // LOOKS,
        callbacks=[lambda step, state, row: path.append(jax.nn.softmax(state.x.x))],
    )  # fmt: skip
    return np.array(path)


def by_doge(given: World, seed: int) -> np.ndarray:
    """The mean weights of all steps."""
    found = solve(
        doge.problem(loss, DOGE_RATE), doge.method(adam(RATE, WEIGHT_STEPS)),
        doge.start(len(NAMES), start(seed)),
        mixture.data(given.sources, given.target, ROWS, TARGET_ROWS), seed, WEIGHT_STEPS,
    )  # fmt: skip
    return np.asarray(found.x.mean)


def trained(sources, weights, test: Rows, seed: int) -> float:
    """The test loss of a new model, trained on rows drawn with the weights."""
    data = bl.Data(mixture.drawn(sources, weights, ROWS * len(NAMES)))
    found = solve(
        training(loss), bl.methods.TTSA(adam(RATE, STEPS)), start(seed), data, seed, STEPS
    )
    return float(loss(found.x, test).mean())


def one(families, seed: int, told: Callable = print) -> dict:
    """Weights and test losses of one seed."""
    given = world(families, seed)
    clean = np.isin(NAMES, FAMILIES)
    path = by_scalebio(given, seed)
    weights = {
        "ScaleBiO": path[-1],
        "DoGE": by_doge(given, seed),
        "uniform": np.full(len(NAMES), 1 / len(NAMES)),
        "oracle": clean / clean.sum(),
    }
    losses = {n: trained(given.sources, w, given.test, seed) for n, w in weights.items()}
    losses["target only"] = trained((given.target,), [1.0], given.test, seed)
    for name, value in losses.items():
        w = weights.get(name)
        told(f"seed {seed}  {name:12} {value:.4f}  {'' if w is None else np.round(w, 3)}")
    return {
        "losses": losses,
        "weights": {name: np.round(w, 4).tolist() for name, w in weights.items()},
        "path": np.round(path, 4).tolist(),
    }


WAYS = "ScaleBiO", "DoGE", "uniform", "target only", "oracle"


def kept() -> list[dict]:
    return json.loads((RESULTS / "mixing.json").read_text())["seeds"]


def table(found: list[dict]) -> str:
    """Means over the seeds, and differences with their standard errors, seed by seed."""
    bad = [i for i, name in enumerate(NAMES) if name not in FAMILIES]
    losses = {way: np.array([one["losses"][way] for one in found]) for way in WAYS}
    lines = ["| weights | test loss | above the oracle | below uniform | weight of both copies |"]
    lines += ["|---|---|---|---|---|"]
    for way, loss in losses.items():
        share = [sum(one["weights"][way][i] for i in bad) for one in found if way in one["weights"]]
        gain = report.mean_and_error(losses["uniform"] - loss)
        above = 100 * (loss.mean() / losses["oracle"].mean() - 1)
        told = "" if way == "uniform" else str(gain)
        weight = f"{np.mean(share):.3f}, at most {max(share):.3f}" if share else ""
        lines.append(f"| {way} | {loss.mean():.4f} | {above:.1f} % | {told} | {weight} |")
    return "\n".join(lines)


def draw_path(axes, run: dict, good: dict[str, bool], steps: int, *, every: int) -> None:
    """The weights of one run on the way; sources that are not good are dashed."""
    path = np.array([run["weights"]["uniform"], *run["path"]])
    for i, (name, fine) in enumerate(good.items()):
        style = {"color": figures.series_color(i), "marker": figures.MARKERS[i]}
        line = "-" if fine else "--"
        at = np.linspace(0, steps, len(path))
        axes.plot(at, path[:, i], label=name, linestyle=line, markevery=every, **style)
    axes.set(xlabel="step", ylabel="weight", ylim=(0, None))


def draw(found: list[dict], file: Path) -> None:
    """The weights of the first seed on the way, and the test losses of all."""
    with figures.style():
        figure = figures.new_figure(5.8, 6.6)  # to be read on a phone
        figure.patch.set_alpha(1)
        upper, lower = figure.subplots(2, 1, height_ratios=(3, 2))
        good = {name: name in FAMILIES for name in NAMES}
        draw_path(upper, found[0], good, WEIGHT_STEPS, every=8)
        upper.set_title("Weights, one seed")
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        for i, way in enumerate(WAYS):
            losses = [one["losses"][way] for one in found]
            score = report.mean_and_error(np.array(losses))
            lower.errorbar(score.mean, -i, xerr=score.error, fmt="o", color=figures.INK, capsize=4)
            lower.plot(losses, [-i] * len(losses), "|", color=figures.QUIET)
        lower.set_yticks(-np.arange(len(WAYS)), WAYS)
        lower.set(xlabel="test loss (less is better)", title="A model trained with them")
        figure.savefig(file, dpi=150, metadata={"Software": None})


def readme() -> str:
    """What the docs show of the last run."""
    return table(kept())


def main() -> None:
    options = argparse.ArgumentParser(description="ScaleBiO on families of instructions.")
    options.add_argument("--data", type=Path, help="folder of NAME.jsonl; absent: the kept results")
    options.add_argument("--seeds", type=int, default=SEEDS)
    options.add_argument("--save", type=Path, help="file of a picture")
    options.add_argument("--no-keep", action="store_true", help="leave the results file as it is")
    given = options.parse_args()
    found = kept() if given.data is None else ran(read(given.data), given.seeds)
    if given.data is not None and not given.no_keep:
        content = {"names": NAMES, "seeds": found}
        (RESULTS / "mixing.json").write_text(json.dumps(content, indent=1) + "\n")
    print(table(found))
    if given.save:
        draw(found, given.save)


def ran(families, seeds: int) -> list[dict]:
    found = []
    for seed in range(seeds):
        begun = time.process_time()
        found.append(one(families, seed, functools.partial(print, flush=True)))
        print(f"{time.process_time() - begun:.0f} s of the processor", flush=True)
    return found


if __name__ == "__main__":
    main()
