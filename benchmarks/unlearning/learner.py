"""A model that is told answers, and is to forget some of them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.methods.align import align
from bilevel.apps.llm.methods.sft import SFT
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.policies.packing import Packing
from bilevel.apps.llm.policies.policy import Responses
from bilevel.updates import Optax

Pairs = list[tuple[str, str]]  # questions and answers
LENGTH, WARM = 256, 50  # tokens of a packed row, and first steps, of a training


class Text(Protocol):
    """Text to tokens and back."""

    def rows(self, pairs: Pairs) -> list[Row]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class Arrays(Protocol):
    """Rows as the policy reads them; `prompt` and `response` are lengths."""

    def __call__(
        self, rows: list[Row], *, prompt: int | None = None, response: int | None = None
    ) -> Responses: ...


class Settings(NamedTuple):
    """How a model learns and forgets."""

    steps: int  # of the training
    batch: int  # packed rows
    rate: float
    forgetting_rate: float
    forgetting: dict[str, int]  # steps on each set
    longest: int  # tokens of a row to retain, which saves padding
    steered: int  # layers below the states that RMU steers
    steering: float  # length of what it steers them to
    drawn: int  # answers of each kind that ROUGE is of
    swept: tuple[str, ...] = ()  # sets on which the settings of some ways are swept


class Learner(NamedTuple):
    policy: Any  # an `AbstractPolicy` with `token_states`
    start: PyTree  # parameters before anything is told
    width: int  # of the states
    text: Text
    arrays: Arrays
    packed: Callable[[list[Row]], Packing]
    settings: Settings


def learned(learner: Learner, rows: list[Row]) -> PyTree:
    """Parameters of a model that was told these answers."""
    together, steps = learner.packed(rows), learner.settings.steps
    rates = optax.warmup_cosine_decay_schedule(0, learner.settings.rate, WARM, steps)
    task = Task(learner.policy, learner.start, 1.0, demonstrations=together.responses)
    return align(
        task,
        SFT(Optax(optax.adamw(rates, weight_decay=0.01)), together.per_row),
        steps=steps,
        batch_size=learner.settings.batch,
        log_every=steps,
        progress=False,
    ).policy


def trained(learner: Learner, rows: list[Row], file: Path | None) -> PyTree:
    """The same, from the file if it is there."""
    if file is not None and file.is_file():
        like = jax.eval_shape(lambda: learner.start)
        return eqx.tree_deserialise_leaves(file, like)
    params = learned(learner, rows)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        eqx.tree_serialise_leaves(file, params)
    return params
