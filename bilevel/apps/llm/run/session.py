"""From files to an aligned checkpoint folder: what `bilevel align` and `bilevel sft` do.

given = load(Path("model"), Path("demos.jsonl"), Path("prefs.jsonl"), Settings())
found = train(given, Path("aligned.run"))
save(given, found, Path("aligned"))
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bilevel.apps.llm.hub import checkpoint, write
from bilevel.apps.llm.hub.tokenizer import Tokenizer
from bilevel.apps.llm.methods import align as aligning
from bilevel.apps.llm.methods.align import Aligned
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies import prompt_cache as prompt_cache
from bilevel.apps.llm.run.kept import advice_on_memory
from bilevel.apps.llm.run.monitor import Monitor, metrics
from bilevel.apps.llm.run.prepared import Session, load, prepare
from bilevel.apps.llm.run.settings import Method, Settings
from bilevel.driver import Outcome, Status


class TrainResult(NamedTuple):
    """What came out."""

    policy: PyTree
    reward: PyTree | None
    history: dict[str, np.ndarray]
    status: Status
    aligned: Aligned
    speed: float  # tokens a second


# --- while it runs -----------------------------------------------------------------------------


def train(
    given: Session, folder: Path | None, *, told: Callable[[str], Any] = lambda line: None,
    callbacks: Sequence[Callable[[int, Any, Any], Any]] = (), steps: int | None = None
) -> TrainResult:  # fmt: skip
    """Align, with the state of the run kept in a folder; goes on where an earlier call ended.

    Args:
        callbacks: called as `callback(step, state, row)` with what is logged, by name, in `row`.

    Raises:
        ValueError: out of memory, with what to lower.
    """
    settings, watch = given.settings, Monitor(given, told)
    steps = settings.steps if steps is None else steps
    with advice_on_memory(ADVICE):
        aligned = aligning.align(
            given.task,
            given.how,
            steps=steps,
            reward=given.reward,
            key=jax.random.key(settings.seed),
            batch_size=given.rows,
            prompts=settings.batch,
            metrics=metrics(given),
            log_every=settings.log_every,
            callbacks=(watch, *callbacks),
            progress=False,
            checkpoint=folder,
        )
    result = aligned.results[-1]
    x, y, status = aligned.reward, aligned.policy, result.status
    if status.outcome is Outcome.FINISHED and not settings.method.learns_reward:
        loss = result.history["upper"][-1]  # the lower level is idle, and worth no word
        status = Status(Outcome.FINISHED, f"all steps made (training loss {loss:.3g}).")
    if watch.why is not None:
        kept = "the model as it was given"
        x, y = given.reward, given.task.reference
        if watch.good is not None:
            step, x, y = watch.good
            kept = f"the model of step {step}"
        status = Status(Outcome.DIVERGED, f"{watch.why} Kept: {kept}.")
    return TrainResult(y, x, aligned.history, status, aligned, _speed(given, aligned))


def _speed(given: Session, aligned: Aligned) -> float:
    """Tokens a second, without compilation."""
    stats = [result.stats for result in aligned.results]
    seconds = sum(one.seconds - one.compile_seconds for one in stats)
    return sum(one.steps for one in stats) * given.tokens / max(seconds, 1e-9)


ADVICE = (
    "Lower --batch, --samples, --length or --new; or adapt fewer --layers with a smaller --rank."
)


# --- after -------------------------------------------------------------------------------------


def merged(given: Session, policy: PyTree) -> checkpoint.Checkpoint:
    """The checkpoint with what was learned."""
    loaded = given.checkpoint
    params = given.policy.trained.merge(loaded.config, loaded.params, policy)
    return replace(loaded, params=params)


def answers(given: Session, policy: PyTree, count: int = 6) -> list[tuple[str, str]]:
    """Prompts, held-out where there are, with the likeliest answers."""
    rows = given.shown or (given.held and given.held.chosen)
    asked = given.task.prompts_to_answer() if rows is None else rows.prompts
    asked = jax.tree.map(lambda leaf: leaf[:count], asked)
    if not isinstance(asked, model.PromptBatch):
        at = prompt_cache.numbers(asked)
        asked = jax.tree.map(lambda leaf: leaf[at], given.asked)
    return said(merged(given, policy), given.tokenizer, asked, given.policy)


def said(
    loaded: checkpoint.Checkpoint,
    text: Tokenizer,
    asked: model.PromptBatch,
    policy: model.Decoder | prompt_cache.CachedDecoder,
) -> list[tuple[str, str]]:
    """Prompts, and the likeliest answers of a checkpoint, token by token."""
    drawing = replace(policy.drawing, temperature=0.0)
    drawn = model.generate(
        loaded.config,
        loaded.params,
        *asked,
        key=jax.random.key(0),
        drawing=drawing,
        compute=policy.compute,
    )
    tokens, response = map(write.fetch, (drawn.tokens, drawn.response))
    prompts, mask = np.asarray(asked.tokens), np.asarray(asked.mask)
    return [
        (text.decode(p[m]), text.decode(t[r]))
        for p, m, t, r in zip(prompts, mask, tokens, response, strict=True)
    ]


def save(
    given: Session, found: TrainResult, out: Path, *,
    also: Callable[[Path], Any] = lambda folder: None
) -> None:  # fmt: skip
    """Write the Hugging Face folder, and with `also(folder)` what else belongs into it."""
    write_folder(merged(given, found.policy), out, also=also)


def write_folder(
    loaded: checkpoint.Checkpoint, out: Path, *, also: Callable[[Path], Any] = lambda folder: None
) -> None:
    """Write a checkpoint in the format of the one it was read from."""
    kind = loaded.about.get("dtype", loaded.about.get("torch_dtype"))
    dtype = kind if kind in ("float32", "float16", "bfloat16") else "float32"
    checkpoint.save(loaded, out, dtype=jnp.dtype(dtype), also=also)


__all__ = [
    "Method",
    "Session",
    "Settings",
    "TrainResult",
    "answers",
    "load",
    "prepare",
    "save",
    "train",
]
