"""`python -m benchmarks.unlearning --tofu FOLDER`: about 20 minutes of one processor core."""

import argparse
from functools import partial
from pathlib import Path

from benchmarks.unlearning import show
from benchmarks.unlearning.runs import FILE, NAMES, SWEPT, everything


def main() -> None:
    options = argparse.ArgumentParser(description="Ways to forget, on TOFU and a small model.")
    options.add_argument("--tofu", type=Path, required=True, help="folder of tofu.json")
    options.add_argument("--set", action="append", choices=NAMES, help="both when absent")
    options.add_argument("--models", type=Path, help="folder to keep the trained models in")
    options.add_argument("--file", type=Path, default=FILE, help="results; runs in it are kept")
    options.add_argument("--anew", action="store_true", help="repeat the runs in the file")
    asked = options.parse_args()
    if asked.anew:
        asked.file.unlink(missing_ok=True)
    told = partial(print, flush=True)
    everything(asked.tofu, asked.set or [*NAMES], asked.models, asked.file, told)
    if asked.file == FILE:
        if show.done(SWEPT):
            show.draw()
        for name in filter(show.done, NAMES):
            print(f"\n{name}\n\n{show.table(name)}")


if __name__ == "__main__":
    main()
