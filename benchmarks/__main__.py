"""`python -m benchmarks`: every part, one table, results kept."""

import subprocess
import sys

from benchmarks import convolutions, inverse_rl_steps, seeds, startup, steps, tables, unrolled
from benchmarks.harness import keep, machine, table

PARTS = {
    "startup": startup,
    "seeds": seeds,
    "unrolled": unrolled,
    "tables": tables,
    "steps": steps,
    "convolutions": convolutions,
    "inverse_rl_steps": inverse_rl_steps,
}
# Parts with tables and figures of their own, each in a process of its own.
REPORTS = (
    "rates",
    "problems",
    "cleaning",
    "applications",
    "alignment",
    "drifting",
    "counterexamples",
    "billion",
    "gold_reward",
    "tolls",
    "universal",
)


def main() -> None:
    print(", ".join(f"{name} {value}" for name, value in machine().items()), end="\n\n")
    rows = []
    for name, part in PARTS.items():
        print(f"{name} ...", flush=True)
        found = part.measure()
        keep(name, found)
        rows += found
    print(f"\n{table(rows)}\n")
    missed = [row for row in rows if row.missed]
    print(f"{len(missed)} of {sum(row.target is not None for row in rows)} targets missed.")
    print(
        "ratio: median of the rounds; quiet: fastest against fastest. Kept in benchmarks/results."
    )
    for name in REPORTS:
        print(f"\n{name} ...", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main()
