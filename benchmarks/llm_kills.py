"""`bilevel sft` and `bilevel align` killed at random moments: every rerun ends in the same files.

    python -m benchmarks.llm_kills [--kills 20]

A tiny random model is tuned by sft, dpo and aihf, with a checkpoint after every step. Children are
killed while they compile, train, save a checkpoint, write the result or clean up, again and again
in one folder; what the last one writes must be, to the bit, what a run that was left alone wrote.
Whatever stands at `--out` after a kill must be that, too. Prints what differs, and exits 1 if
anything does.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.kills import finish, wait_for

METHODS = {
    "sft": ("sft",),
    "dpo": ("align", "--method", "dpo"),
    "aihf": ("align", "--method", "aihf"),
}
PATIENCE = 3600.0  # seconds, for machines that do much else
MOMENTS = ("compiling", "step", "checkpoint", "writing", "cleaning")

CHILD = """
import sys
from bilevel.driver.checkpoint import Checkpoint, Saver
from bilevel.driver.chunks import Loop
from bilevel.apps.llm.run import session
from bilevel.apps.llm.hub import folders
from bilevel.cli import main

Checkpoint.__new__.__defaults__ = (0.0, 2)  # a checkpoint whenever something is logged

def marked(fn, word):
    def call(*args, **named):
        print(word, flush=True)
        return fn(*args, **named)
    return call

Loop.__call__ = marked(Loop.__call__, "compiling")
Saver.save = marked(Saver.save, "checkpoint")
session.save = marked(session.save, "writing")
folders.remove = marked(folders.remove, "cleaning")
main(sys.argv[1:])
"""


def make_model(folder: Path) -> None:
    """A random Llama of two layers, and a tokenizer of bytes."""
    import jax
    import tokenizers

    from bilevel.apps.llm.hub import checkpoint
    from bilevel.apps.llm.models import config, parameters

    spec = config.llama(300, 16, 32, 2, 2, tied=True, max_length=64)
    params = parameters.init(spec, jax.random.key(0), deviation=0.2)
    checkpoint.save(checkpoint.new(spec, params), folder)
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["hello world, hello there"], trainer)
    core.save(str(folder / "tokenizer.json"))
    told = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def make_feedback(folder: Path) -> tuple[Path, Path]:
    """Files of demonstrations and preferences."""
    demos, prefs = folder / "demos.jsonl", folder / "prefs.jsonl"
    asked = [f"hello {i}" for i in range(12)]
    rows = [{"prompt": text, "completion": " world"} for text in asked]
    demos.write_text("\n".join(map(json.dumps, rows)))
    rows = [{"prompt": text, "chosen": " world", "rejected": " there"} for text in asked]
    prefs.write_text("\n".join(map(json.dumps, rows)))
    return demos, prefs


def words_of(name: str, home: Path) -> list[str]:
    """What is typed, without `--out`."""
    words = [*METHODS[name], "--model", str(home / "model"), "--demos", str(home / "demos.jsonl")]
    if name != "sft":
        words += ["--prefs", str(home / "prefs.jsonl"), "--samples", "2"]
    return [*words, "--steps", "6", "--batch", "2", "--log-every", "1", "--rate", "0.01"]


def start(words: list[str], out: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, *words, "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def digest(out: Path) -> dict[str, str]:
    """Letters for every file, without the clock's numbers."""
    found = {file.name: file.read_bytes() for file in out.iterdir()}
    history = json.loads(found["history.json"])
    found["history.json"] = json.dumps(history | {"seconds": None}).encode()
    found["report.html"] = b"" if found["report.html"].endswith(b"</html>\n") else b"torn"
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def trial(name: str, n: int, home: Path, draw: random.Random) -> tuple[list[str], Counter]:
    """Kill n children of one method; what was wrong, and at which moments they were killed."""
    words, out = words_of(name, home), home / name
    code, _, said = finish(start(words, out), PATIENCE)
    if code:
        return [f"{name} itself fails: {said[-500:]}"], Counter()
    whole, wrong, moments, done = digest(out), [], Counter(), 0
    shutil.rmtree(out)
    while done < n or code != 0:
        child = start(words, out)
        moment = draw.choice(MOMENTS) if done < n else "the end"
        wait_for(child, moment)
        if done < n:
            time.sleep(draw.choice([0, draw.uniform(0, 0.02), draw.uniform(0, 0.5)]))
            child.kill()
        code, _, said = finish(child, PATIENCE)
        if code < 0:
            done += 1
            moments[moment] += 1
        elif code:
            wrong.append(f"{name} after a kill: code {code}: {said[-500:]}")
            break
        if out.exists():  # with or without the state of the run beside it
            if digest(out) != whole:
                wrong.append(f"{name}, {moment}: another result")
            shutil.rmtree(out)
    return wrong, moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    asked, draw = parser.parse_args(), random.Random(0)
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_model(home / "model")
        make_feedback(home)
        for i, name in enumerate(METHODS):
            share = asked.kills // 3 + (i < asked.kills % 3)
            found, moments = trial(name, share, home, draw)
            wrong += found
            told = ", ".join(f"{count} {moment}" for moment, count in moments.items())
            print(f"{name}: {share} kills ({told}): {len(found)} wrong", *found, sep="\n  ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
