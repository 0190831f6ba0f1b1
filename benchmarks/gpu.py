"""SFT, IRL and AIHF of all of SmolLM2 on a GPU: speed, FLOP utilisation, memory, price of a round.

`make gpu` or `python -m benchmarks.gpu`. SmolLM2-135M-Instruct, as `benchmarks.align_demo` imports
it, all parameters trained; activations in bfloat16, parameters, reductions and Adam in float32.
IRL learns from GSM8K's solutions; AIHF from preferences of HH-RLHF, of half of which it sees the
chosen response alone. Meant to take less than eight minutes. `--small` is the same program on a
CPU, with the first layers, short rows and few steps, for a minute: it keeps no results.

FLOPs are those of the matrix products that the model needs, a multiply-add counted as 2, with
attention to every place of a row and without what is computed again for derivatives.
"""

import argparse
import gzip
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.align_demo import imported
from benchmarks.harness import Row, keep, table
from bilevel.apps.llm.data import encode
from bilevel.apps.llm.data import jsonl as files
from bilevel.apps.llm.hub import checkpoint, tokenizer
from bilevel.apps.llm.methods import align
from bilevel.apps.llm.models import parameters
from bilevel.apps.llm.models.config import Config, Layers
from bilevel.apps.llm.models.transformer import ComputeOptions, Remat
from bilevel.apps.llm.run import session
from bilevel.apps.llm.run.session import Method, Session, Settings

ROOT = Path(__file__).parent.parent
TARGET = 480.0  # seconds
# Dense bfloat16 products a second, from the vendor's data sheets, by a part of the device's name.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
         "L4": 121e12, "A10": 125e12, "V100": 125e12, "T4": 65e12}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is computed.

    Args:
        layers: the first ones alone; all when absent.
        sequences: to learn from.
        steps, every: steps, and how many are timed together; the first lot compiles.
    """

    prompt: int = 128
    answer: int = 128
    batch: int = 32
    samples: int = 4
    layers: int | None = None
    sequences: int = 512
    steps: int = 24
    every: int = 4


SMALL = Plan(64, 56, 1, 2, layers=1, sequences=8, steps=3, every=1)


# --- FLOPs ---------------------------------------------------------------------------------------


def forward(config: Config, rows: int, length: int, reads: int) -> float:
    """Of one pass over rows, with the scores of the vocabulary at `reads` places of each."""
    attended = 2 * config.heads * config.head_dim * length  # scores, and what they weigh
    kernels = parameters.size(config) - config.vocab_size * config.width * (2 - config.tied)
    token = 2 * (kernels + config.layers * attended)
    return float(rows * (length * token + reads * 2 * config.vocab_size * config.width))


def of_sft(config: Config, rows: int, length: int, reads: int) -> float:
    """A step: the derivative costs two passes more."""
    return 3 * forward(config, rows, length, reads)


def of_round(config: Config, plan: Plan, preferences: bool) -> float:
    """A step of IRL, or with preferences of AIHF.

    The policy's: responses are drawn, their log-probabilities taken by policy and reference, their
    rewards, and the derivative. The reward's, an adapter, whose derivative costs one pass more: one
    response is drawn to every demonstration, and rewards of both; of chosen and rejected, too. The
    loss that is reported takes the demonstrations' log-probabilities.
    """
    length, many = plan.prompt + plan.answer, plan.batch * plan.samples

    def spoken(rows):
        return forward(config, rows, length, plan.answer)

    def judged(rows):
        return forward(config, rows, length, 0)

    policy = (1 + 1 + 1 + 3) * spoken(many) + judged(many)
    reward = spoken(plan.batch) + 2 * (2 + 2 * preferences) * judged(plan.batch)
    return policy + reward + spoken(plan.batch)


def peak(name: str) -> float | None:
    """FLOPs a second that a device is sold for, or None."""
    return next((flops for part, flops in PEAKS.items() if part in name), None)


# --- data ----------------------------------------------------------------------------------------


def data_folder(given: Path | None) -> Path:
    """Where the data sets are.

    Raises:
        FileNotFoundError: there are none.
    """
    asked = [given] if given else [ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
    for folder in asked:
        if (folder / "gsm8k").is_dir() and (folder / "hh").is_dir():
            return folder
    tried = " or ".join(str(folder) for folder in asked)
    raise FileNotFoundError(
        f"{tried}: no folders gsm8k and hh. Give --data, a folder that holds gsm8k/train.jsonl and "
        "hh/test.jsonl.gz."
    )


def solutions(file: Path) -> Iterator[files.Demonstration]:
    """Questions of GSM8K with their solutions."""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        told = json.loads(line)
        yield files.Demonstration(told["question"] + "\n", told["answer"], None, number)


def dialogues(file: Path) -> Iterator[files.Pair]:
    """Pairs of HH-RLHF that part in the last answer."""
    turn = "\n\nAssistant:"
    for number, line in enumerate(gzip.decompress(file.read_bytes()).decode().splitlines(), 1):
        (asked, _, chosen), (same, _, rejected) = (
            json.loads(line)[name].rpartition(turn) for name in ("chosen", "rejected")
        )
        if asked == same and chosen.strip() and rejected.strip() and chosen != rejected:
            yield files.Pair(asked + turn, chosen, rejected, None, number)


def fitting(rows: list, plan: Plan, count: int) -> list:
    """The first ones that are not too long: rows, or pairs of them."""

    def fits(row: encode.Row) -> bool:
        return len(row.prompt) <= plan.prompt and len(row.response) <= plan.answer

    found = [one for one in rows if all(map(fits, [one] if isinstance(one, encode.Row) else one))]
    if len(found) < count:
        raise ValueError(f"{len(found)} of {len(rows)} sequences are short enough; {count} needed.")
    return found[:count]


def learnt(folder: Path, text: tokenizer.Tokenizer, plan: Plan):
    """Demonstrations of GSM8K, and demonstrations and pairs of HH-RLHF, as tokens."""
    how = {"context": 10**6, "end": True}
    math, talk = folder / "gsm8k" / "train.jsonl", folder / "hh" / "test.jsonl.gz"
    shown = fitting(
        encode.encode(list(solutions(math)), text, file=math, **how),
        plan, plan.sequences)  # fmt: skip
    pairs = fitting(
        encode.encode_pairs(list(dialogues(talk)), text, file=talk, **how), plan, plan.sequences
    )
    half = plan.sequences // 2
    return shown, [pair.chosen for pair in pairs[:half]], pairs[half:]


# --- runs ----------------------------------------------------------------------------------------


def first(loaded: checkpoint.Checkpoint, layers: int | None) -> checkpoint.Checkpoint:
    """The model with its first layers alone."""
    if layers is None:
        return loaded
    config = loaded.config
    config = replace(config, layers=layers, windows=config.windows[:layers])
    stacked = jax.tree.map(lambda leaf: leaf[:layers], loaded.params["layers"])
    return replace(loaded, config=config, params={**loaded.params, "layers": stacked})


def in_bfloat16(given: Session) -> Session:
    """Activations of policy and reward; a layer keeps its input alone for derivatives."""
    how = ComputeOptions(dtype=jnp.bfloat16, remat=Remat.LAYERS)
    policy, head = replace(given.policy, compute=how), given.task.reward
    if head is not None:
        head = replace(head, hidden=replace(head.hidden, compute=how))
    return given._replace(policy=policy, task=replace(given.task, policy=policy, reward=head))


@dataclass(frozen=True)
class Timed:
    """Of a step, without the lot that compiles."""

    seconds: float
    tokens: float
    flops: float
    compiling: float  # seconds until the first lot was done


def timed(given: Session, flops: float, plan: Plan) -> Timed:
    """Align, and look at the clock between the lots."""
    times = [time.perf_counter()]

    def clock(step: int, state: Any, row: Any) -> None:
        times.append(time.perf_counter())

    align.align(
        given.task,
        given.how,
        steps=plan.steps,
        reward=given.reward,
        batch_size=given.rows,
        prompts=given.settings.batch,
        log_every=plan.every,
        callbacks=(clock,),
        progress=False,
    )
    lots = [after - before for before, after in itertools.pairwise(times)]
    return Timed(statistics.median(lots[1:]) / plan.every, given.tokens, flops, lots[0])


def lines(name: str, found: Timed, device: jax.Device) -> list[Row]:
    rows = [
        Row(f"{name}: tokens", found.tokens / found.seconds, unit="tokens/s",
            note=f"{found.seconds:.3g} s a step, {found.tokens:.0f} tokens; "
            f"first lot {found.compiling:.0f} s"),
        Row(f"{name}: FLOPs of the model", found.flops / found.seconds / 1e12, unit="TFLOP/s"),
    ]  # fmt: skip
    best = peak(device.device_kind)
    if best is not None:
        share = 100 * found.flops / found.seconds / best
        rows.append(Row(f"{name}: FLOP utilisation", share, unit="%", note=device.device_kind))
    memory = peak_bytes(device) / 2**30
    return [*rows, Row(f"{name}: peak memory, and of what ran before", memory, unit="GiB")]


def peak_bytes(device: jax.Device) -> float:
    """Of the device, or of this process where the device does not tell."""
    found = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(plan: Plan, data: Path, cache: Path, told=print) -> list[Row]:
    """Time SFT, IRL and AIHF, one run after another."""
    begin, device = time.perf_counter(), jax.devices()[0]
    folder = imported(cache)
    text = tokenizer.load(folder)
    shown, chosen, pairs = learnt(data, text, plan)
    rows, seconds = [], {}
    for method, demos, prefs in (
        (Method.SFT, shown, []),
        (Method.IRL, shown, []),
        (Method.AIHF, chosen, pairs),
    ):
        loaded = checkpoint.load(folder, dtype=jnp.float32, layers=Layers.SCAN)
        loaded = first(loaded, plan.layers)
        learns = method.learns_reward
        settings = Settings(
            method=method,
            batch=plan.batch if learns else plan.batch * plan.samples,
            samples=plan.samples,
            rank=0,
            rate=1e-6,
            length=plan.prompt + plan.answer,
            new=plan.answer,
            held_out=0.0,
        )
        given = in_bfloat16(session.prepare(loaded, text, demos, prefs, settings))
        del loaded
        config = given.checkpoint.config
        if learns:
            flops = of_round(config, plan, bool(prefs))
        else:
            said = given.task.demonstrations.tokens.shape[1]
            flops = of_sft(config, given.rows, plan.prompt + plan.answer, said)
        found = timed(given, flops, plan)
        del given
        seconds[method] = found.seconds / found.tokens
        rows += lines(method.value, found, device)
        if learns:
            many = plan.batch * plan.samples * (plan.prompt + plan.answer)
            price = found.seconds / (many * seconds[Method.SFT])
            what = f"{method.value}: a round against SFT on the tokens that the policy learns from"
            rows.append(Row(what, price, unit="times"))
        told(table(rows).splitlines()[-1])
    total = time.perf_counter() - begin
    return [*rows, Row("all of it", total, unit="s", note=f"meant to be below {TARGET:.0f}")]


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description="Align all of SmolLM2 on a GPU.")
    options.add_argument("--data", type=Path, help="folder with gsm8k and hh")
    options.add_argument("--small", action="store_true", help="a minute on a CPU, nothing kept")
    options.add_argument("--cache", type=Path, default=Path(sys.prefix) / "share" / "bilevel",
                         help="where the imported model is kept")  # fmt: skip
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    asked = parsed(arguments)
    if not asked.small and jax.default_backend() != "gpu":
        print("JAX finds no GPU on this machine: give --small for a short run on the CPU.",
              file=sys.stderr)  # fmt: skip
        return 1
    rows = measure(SMALL if asked.small else Plan(), data_folder(asked.data), asked.cache)
    print(f"\n{table(rows)}")
    if not asked.small:
        print(f"kept in {keep('gpu', rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
