"""What a step of SFT and of DPO costs, against transformers and trl on PyTorch.

`make llm-bench` or `python -m benchmarks.llm_steps`. All parameters of a random Llama in float32,
on one core and one thread; processor seconds. The two sides are processes of their own that take
turns, on the same weights (written by ours as a Hugging Face folder), the same tokens and with the
same AdamW; both must first find the same losses. "No prompts": every token is answered for; else
half of a row is its prompt. The price of a bilevel round is ours alone: a step of AIHF (LeaveOneOut
with two samples a prompt, and the reward's hypergradient), against SFT on rows as many and as long
as those that the policy learns from.
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks import turns
from benchmarks.harness import RESULTS, Row, compare, keep, table

FILES = "model", "reference"  # folders of the two checkpoints
RATE, BETA = 1e-5, 0.1
TARGET = 1 / 1.5  # of the time of theirs
AGREE = 1e-4
SIZES = {
    "20 M": {"vocab_size": 32000, "width": 320, "inner": 864, "layers": 8, "heads": 5},
    "124 M": {"vocab_size": 50257, "width": 768, "inner": 2048, "layers": 12, "heads": 12},
}
CASES = "SFT", "DPO", "SFT, no prompts"
OTHERS = "transformers", "trl"


@dataclass(frozen=True)
class Shapes:
    """What both sides compute.

    Args:
        model: sizes, as `config.llama` takes them.
        rows: of a step; DPO has half as many pairs.
        prompt, answer: tokens.
    """

    model: dict[str, int]
    rows: int = 8
    prompt: int = 64
    answer: int = 64

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.rows * (self.prompt + self.answer)


def drawn(shapes: Shapes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random prompts and what follows them, by name; the same on both sides."""
    random = np.random.default_rng(0)

    def tokens(*shape):
        return random.integers(2, shapes.model["vocab_size"], shape, dtype=np.int32)

    pairs, whole = shapes.rows // 2, shapes.prompt + shapes.answer
    asked = tokens(pairs, shapes.prompt)
    return {
        "SFT": (tokens(shapes.rows, shapes.prompt), tokens(shapes.rows, shapes.answer)),
        "SFT, no prompts": (tokens(shapes.rows, 1), tokens(shapes.rows, whole - 1)),
        "chosen": (asked, tokens(pairs, shapes.answer)),
        "rejected": (asked, tokens(pairs, shapes.answer)),
    }


def agreed(ours: turns.Side, theirs: turns.Side, case: str) -> dict[str, float]:
    """The differences of the losses on the same weights, by whose they are.

    Raises:
        RuntimeError: the two sides do not compute the same.
    """
    _, mine = ours.ask(f"{case}: loss")
    found = {}
    for other in OTHERS:
        _, loss = theirs.ask(f"{other}, {case}: loss")
        found[other] = abs(mine - loss)
        if not found[other] < AGREE:
            raise RuntimeError(f"{case}: the loss is {mine}, and {loss} by {other}.")
    return found


@contextlib.contextmanager
def prepared(shapes: Shapes) -> Iterator[str]:
    """A folder in which the sides find what to compute."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shapes.json").write_text(json.dumps(asdict(shapes)))
        yield folder


def steps(size: str, shapes: Shapes, repeats: int, cases=CASES, told=print) -> list[Row]:
    """Both sides, in turn."""
    rows = []
    with (
        prepared(shapes) as folder,
        turns.Side("benchmarks.llm_jax", folder) as ours,
        turns.Side("benchmarks.llm_torch", folder) as theirs,
    ):
        gaps = {case: agreed(ours, theirs, case) for case in cases}
        for case in cases:
            asked = {"ours": (ours, case)}
            asked |= {other: (theirs, f"{other}, {case}") for other in OTHERS}
            times = taken(asked, repeats, told)
            for other in OTHERS:
                rows.append(against(size, case, shapes, times, other, gaps[case][other]))
                told(table(rows[-1:]).splitlines()[-1])
    return rows


def price(size: str, shapes: Shapes, repeats: int, told=print) -> Row:
    """A bilevel round against SFT, by ours alone."""
    with prepared(shapes) as folder, turns.Side("benchmarks.llm_jax", folder) as ours:
        times = taken({"round": (ours, "round"), "SFT": (ours, "SFT")}, repeats, told)
    what = f"{size}: a bilevel round against SFT on as many rows"
    row = compare(what, times["round"], times["SFT"], scale=1, unit="s")
    told(table([row]).splitlines()[-1])
    return row


def taken(asked: dict[str, tuple[turns.Side, str]], repeats: int, told) -> dict[str, list[float]]:
    """Processor seconds of each, in the order A B C, C B A, ...; the first call compiles."""
    times = {name: [] for name in asked}
    for r in range(repeats + 1):
        for name in list(asked) if r % 2 else reversed(asked):
            side, case = asked[name]
            seconds, _ = side.ask(case)
            if r:
                times[name].append(seconds)
    told(", ".join(f"{name} {min(some):.2f} s" for name, some in times.items()))
    return times


def against(size: str, case: str, shapes: Shapes, times, other: str, gap: float) -> Row:
    """A row in which the times are shown as tokens a second."""
    row = compare(f"{size}, {case}: ours against {other}", times["ours"], times[other], scale=1,
                  unit="tokens/s", target=TARGET if size == "124 M" else None)  # fmt: skip
    return row._replace(
        ours=shapes.tokens / row.ours,
        reference=shapes.tokens / row.reference,
        note=f"{1 / row.ratio:.2f} times as fast; losses differ by {gap:.0e}",
    )


def readme() -> str:
    """What the README shows of the last run."""
    kept = json.loads((RESULTS / "llm_steps.json").read_text())["rows"]
    ratio = {row["what"]: row["ratio"] for row in kept}
    lines = [
        "| 124 M parameters, one core | as fast as transformers | as fast as trl |",
        "|---|---|---|",
    ]
    for case in CASES:
        ratios = [ratio[f"124 M, {case}: ours against {other}"] for other in OTHERS]
        lines.append(f"| {case} | " + " | ".join(f"{1 / r:.2f} times" for r in ratios) + " |")
    price = ratio["124 M: a bilevel round against SFT on as many rows"]
    told = (
        "Tokens a second of a training step that has the same losses and AdamW on both sides; half "
        "of a row is its prompt, but in the last line. A step of AIHF, which draws and judges "
        f"responses, too, costs {price:.1f} times a step of SFT on as many rows."
    )
    return "\n".join(lines) + f"\n\n{told}"


def main() -> None:
    options = argparse.ArgumentParser(description="Steps of SFT and DPO against PyTorch's.")
    options.add_argument("--repeats", type=int, default=5, help="rounds of each case")
    options.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    options.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options.add_argument("--no-keep", action="store_true", help="leave the results file as it is")
    given = options.parse_args()
    turns.pin()
    rows = []
    for size in given.sizes:
        shapes = Shapes(SIZES[size])
        rows += steps(size, shapes, given.repeats, given.cases)
        rows.append(price(size, shapes, given.repeats))
        if not given.no_keep:
            print(f"kept in {keep('llm_steps', rows)}", flush=True)
    print(f"\n{table(rows)}")
    print("\nratio: of the times, ours over theirs; ours and reference: tokens a second.")


if __name__ == "__main__":
    main()
