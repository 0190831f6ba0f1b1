"""`python -m benchmarks.gold_reward`: about 20 minutes of one processor core."""

import argparse
from functools import partial
from pathlib import Path

from benchmarks.gold_reward import show
from benchmarks.gold_reward.gold import GOLDS
from benchmarks.gold_reward.runs import everything
from benchmarks.gold_reward.settings import FILE


def main() -> None:
    options = argparse.ArgumentParser(description="Ways to align, scored by a known reward.")
    options.add_argument("--gold", action="append", choices=[*GOLDS], help="both when absent")
    options.add_argument("--file", type=Path, default=FILE, help="results; runs in it are kept")
    options.add_argument("--anew", action="store_true", help="repeat the runs in the file")
    asked = options.parse_args()
    if asked.anew:
        asked.file.unlink(missing_ok=True)
    everything(asked.gold or [*GOLDS], asked.file, partial(print, flush=True))
    if asked.file == FILE:
        show.draw(show.Kept("sentiment"))
        for gold in show.golds():
            print(f"\n{gold}\n\n{show.table(show.Kept(gold))}")


if __name__ == "__main__":
    main()
