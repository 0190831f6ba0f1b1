"""Applications against what a person would use today.

    python -m benchmarks.applications [--only pruning] [--only dag]

Seconds are of the processor, with compilation, both sides of a row in one process of its own; a
ratio above 1 is where ours takes longer. `--only` measures these rows anew and leaves the others as
they are kept.
"""

import argparse
import subprocess
import sys

from benchmarks.applications import leaders, pictures, row, tables

PARTS = tables.PARTS | pictures.PARTS | leaders.PARTS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", choices=PARTS, default=[])
    only = parser.parse_args().only or [*PARTS]
    for name in only:
        print(f"{name} ...", flush=True)
        if len(only) == 1:
            row.keep(name, list(PARTS[name]()))
        else:
            itself = [sys.executable, "-m", "benchmarks.applications", "--only", name]
            subprocess.run(itself, check=True, stdout=subprocess.DEVNULL)
    print(row.table(row.kept()))


if __name__ == "__main__":
    main()
