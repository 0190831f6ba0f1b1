"""What a user waits for: the import, and the first steps of a first `solve`, in fresh processes.

`python -m benchmarks.startup`.
"""

import json
import statistics
import subprocess
import sys

from benchmarks.harness import Row, compare, main

TARGET = 1.5
IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
FIRST = """
import json, time
start = time.perf_counter()
import bilevel as bl
imported = time.perf_counter()
from benchmarks.tasks import logistic
task = logistic()
data = bl.Data(upper=task.upper_data, lower=task.lower_data, batch_size=task.batch_size)
problem, method = bl.Problem(task.upper, task.lower), bl.methods.SOBA(0.05, 0.1, 0.1)
ready = time.perf_counter()
given = {"data": data, "steps": 100, "progress": False}
result = bl.solve(problem, method, task.x0, task.y0, **given)
solved = time.perf_counter()
bl.solve(problem, method, task.x0, task.y0, **given)
again = time.perf_counter()
print(json.dumps({
    "import": imported - start,
    "first chunk": result.stats.compile_seconds,
    "solve": solved - ready,
    "again": again - solved,
}))
"""


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def measure(repeats: int = 5) -> list[Row]:
    imports = {"bilevel": [], "jax, equinox, optax": []}
    for r in range(repeats + 1):
        for names, seconds in imports.items():
            took = float(fresh(IMPORT.format(names)))
            if r:  # the first round fills the disk cache
                seconds.append(took)
    firsts = [json.loads(fresh(FIRST)) for _ in range(max(3, repeats // 2))]

    def median(name):
        return statistics.median(first[name] for first in firsts)

    name = "SOBA, logistic 100"
    return [
        compare("import bilevel against jax, equinox, optax", *imports.values(), scale=1, unit="s",
                target=TARGET),
        Row(f"{name}: first solve, 100 steps, after the import", median("solve"), unit="s"),
        Row(f"{name}: of it until the first chunk was back", median("first chunk"), unit="s"),
        Row(f"{name}: the same solve again", median("again"), unit="s"),
    ]  # fmt: skip


if __name__ == "__main__":
    main("startup", measure)
