"""Kills, Ctrl-C, a full disk and odd folder names: bit-equal or refused, with the right exit code.

    python -m benchmarks.kills [--kills 40] [--presses 20]

Each child makes the same run with a checkpoint. A killed one is started again until it ends; its x
must be that of a run that was left alone. Prints what differs, and exits 1 if anything does.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDERS = ("plain", "with space", "a[1]", "a]b", "a\\b", "a#b", "ä%20", "a:b", "a*?b")

CHILD = """
import sys, time
import jax, jax.numpy as jnp
import bilevel as bl
from bilevel.driver.checkpoint import Saver
from bilevel.driver.chunks import Loop

def marked(fn, word):
    def call(*args, **named):
        print(word, flush=True)
        return fn(*args, **named)
    return call

Loop.__call__ = marked(Loop.__call__, "compiling")
Saver.save = marked(Saver.save, "saving")
A = jax.random.normal(jax.random.key(1), (20, 20)) / 20
problem = bl.Problem(
    lambda x, y, b: jnp.sum((y - 1) ** 2) + jnp.sum(x**2) / 9,
    lambda x, y, b: 0.5 * jnp.sum((y - A @ jnp.tanh(x)) ** 2) + 0.1 * jnp.sum(y**2),
)
def look(step, state, row):
    print("running", flush=True)
    time.sleep(0.02)
result = bl.solve(
    problem, bl.methods.SOBA(), jnp.ones(20), jnp.zeros(20), steps=1000, log_every=50,
    checkpoint=bl.Checkpoint(sys.argv[1], seconds=0.0), callbacks=[look], progress=False,
)
print("x", bytes(memoryview(jnp.asarray(result.x))).hex()[:64], flush=True)
print("status", result.status, flush=True)
sys.exit(130 if result.status.outcome is bl.Outcome.INTERRUPTED else 0)
"""


def start(folder: str, limit: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, folder]
    if limit:  # the largest file, in 512-byte blocks: a disk that is full
        command = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash", *command]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(child: subprocess.Popen, seconds: float = 300) -> tuple[int, str, str]:
    """Exit code, x, and all that was said."""
    out, err = child.communicate(timeout=seconds)
    x = next((line for line in out.splitlines() if line.startswith("x ")), "")
    return child.returncode, x, out + err


def wait_for(child: subprocess.Popen, word: str) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(word):
            return


def kills(n: int, whole: str, draw: random.Random) -> list[str]:
    """Killed at random moments, again and again in one folder until the run ends."""
    wrong, done = [], 0
    while done < n:
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(8):
                if done >= n:
                    break
                child = start(folder)
                wait_for(child, draw.choice(["compiling", "saving", "saving", "running"]))
                time.sleep(draw.uniform(0, 0.3))
                child.kill()
                finish(child)
                done += 1
            code, x, said = finish(start(folder))
            if code or x != whole:
                wrong.append(f"after kills: code {code}, {x[:20]}: {said[-300:]}")
    return wrong


def presses(n: int, whole: str, draw: random.Random) -> list[str]:
    """Ctrl-C once or twice, while compiling, running or saving; then resumed."""
    wrong = []
    for i in range(n):
        word, twice = ("compiling", "running", "saving")[i % 3], i % 2
        with tempfile.TemporaryDirectory() as folder:
            child = start(folder)
            wait_for(child, word)
            time.sleep(draw.uniform(0, 0.1))
            child.send_signal(signal.SIGINT)
            if twice:
                time.sleep(draw.uniform(0.01, 0.2))
                child.send_signal(signal.SIGINT)
            code, _, said = finish(child)
            if code != 130 or "status interrupted" not in said:
                wrong.append(f"{word}, pressed {1 + twice}: code {code}: {said[-300:]}")
            code, x, said = finish(start(folder))
            if code or x != whole:
                wrong.append(f"{word}, resumed: code {code}, {x[:20]}: {said[-300:]}")
    return wrong


def full_disk(whole: str) -> list[str]:
    """Files of no more than 2 kB: the run ends with a note, and x is right."""
    with tempfile.TemporaryDirectory() as folder:
        code, x, said = finish(start(folder, limit="4"))
        fine = (code == 0 and x == whole) or (code and "does not give back" in said)
        return [] if fine or "cannot be written" in said else [f"full disk: {code}: {said[-300:]}"]


def folders(whole: str) -> list[str]:
    """Two runs in each folder: the same x from both, or a refusal of both."""
    wrong = []
    for name in FOLDERS:
        with tempfile.TemporaryDirectory() as parent:
            for _ in range(2):
                code, x, said = finish(start(str(Path(parent) / name)))
                refused = code and "does not give back what is written there" in said
                if not refused and (code or x != whole):
                    wrong.append(f"folder {name}: code {code}: {said[-300:]}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--presses", type=int, default=20)
    asked, draw = parser.parse_args(), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        code, whole, said = finish(start(folder))
        if code or not whole:
            sys.exit(f"the run itself fails: {said[-500:]}")
    trials = {
        f"{asked.presses} Ctrl-C": lambda: presses(asked.presses, whole, draw),
        f"{len(FOLDERS)} folders": lambda: folders(whole),
        "full disk": lambda: full_disk(whole),
        f"{asked.kills} kills": lambda: kills(asked.kills, whole, draw),
    }
    wrong = []
    for name, trial in trials.items():
        found = trial()
        wrong += found
        print(f"{name}: {len(found)} wrong", *found, sep="\n  ", flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
