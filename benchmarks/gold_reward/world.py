"""A small language model trained here, and feedback on what it says, made from a gold reward.

The true reward is `scale · gold`. Demonstrations are draws of the expert, which is the model tilted
by it, `π ∝ π_ref exp(scale · gold / β)`: one of `TRIES` draws, taken with probability proportional
to the tilt. Preferences compare two draws of the model, with a label of the Bradley-Terry model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.gold_reward import gold, text
from bilevel.apps.llm.methods.align import align
from bilevel.apps.llm.methods.sft import SFT
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.models import config, parameters
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import FullFineTune
from bilevel.apps.llm.policies.model import Decoder, PromptBatch
from bilevel.apps.llm.policies.policy import Preferences, Responses, generate
from bilevel.updates import Optax

MODEL = config.llama(text.VOCABULARY, 48, 128, 1, 4, tied=True, max_length=16)
STEPS, BATCH = 800, 64  # of the training of the base
PROMPTS = 2400  # stretches that the base never sees
DEMONSTRATIONS, PAIRS, HELD, JUDGED = 400, 400, 400, 300  # prompts of each
ANSWERS = 4  # to each prompt of judging
TRIES = 32  # draws of the base that the expert chooses from
BETA = 1.0  # β of the true objective
STOP = tuple(range(len(text.ENDS)))


class Base(NamedTuple):
    """The trained model, and prompts that it was not trained on."""

    text: text.Text
    params: parameters.Params
    prompts: np.ndarray  # (PROMPTS, text.PROMPT)


class World(NamedTuple):
    """The feedback of one seed."""

    base: Base
    gold: str
    demonstrations: Responses
    preferences: Preferences
    held: Preferences  # to judge a reward by
    prompts: PromptBatch  # to judge a policy by, each ANSWERS times in a row


POLICY = Decoder(MODEL, None, FullFineTune(), Drawing(new=text.RESPONSE, stop=STOP))


def asked(prompts: np.ndarray) -> PromptBatch:
    return PromptBatch(jnp.asarray(prompts), jnp.ones(prompts.shape, bool))


def base(seed: int = 0) -> Base:
    """The model, trained on all sentences but those whose beginnings are prompts."""
    found = text.read()
    order = np.random.default_rng(seed).permutation(len(found.prompts))
    some = order[PROMPTS:]
    whole = np.concatenate([found.prompts, found.responses], axis=1)[some]
    mask = np.concatenate([np.ones_like(found.prompts, bool), found.mask], axis=1)[some]
    rows = Responses(asked(whole[:, :1]), jnp.asarray(whole[:, 1:]), jnp.asarray(mask[:, 1:]))
    start = parameters.init(MODEL, jax.random.key(seed))
    adam = optax.adamw(optax.warmup_cosine_decay_schedule(0, 4e-3, 50, STEPS), weight_decay=0.1)
    method = SFT(Optax(adam), per_row=float(mask.sum(axis=1).mean()))
    task = Task(POLICY, start, 1.0, demonstrations=rows)
    trained = align(task, method, steps=STEPS, batch_size=BATCH, log_every=STEPS, progress=False)
    return Base(found, trained.policy, found.prompts[order[:PROMPTS]])


def scores(base: Base, name: str, said: Responses) -> np.ndarray:
    """The gold reward of responses."""
    return gold.GOLDS[name](text.said(base.text, np.asarray(said.tokens), np.asarray(said.mask)))


def world(base: Base, name: str, seed: int) -> World:
    """Feedback of one seed; prompts of feedback and of judging are different ones."""
    rng = np.random.default_rng([seed, 1])
    keys = iter(jax.random.split(jax.random.key(seed), 3))
    ends = np.cumsum([DEMONSTRATIONS, PAIRS, HELD, JUDGED])
    shown, compared, held, judged = np.split(rng.permutation(base.prompts)[: ends[-1]], ends[:-1])

    def draws(prompts, times):
        said = generate(POLICY, base.params, asked(np.repeat(prompts, times, axis=0)), next(keys))
        true = gold.SCALE[name] * scores(base, name, said)
        return said, true.reshape(-1, times)

    def chosen(said, times, at):
        rows = np.arange(len(at)) * times + at
        return jax.tree.map(lambda leaf: leaf[rows], said)

    said, true = draws(shown, TRIES)
    tilted = (true / BETA + rng.gumbel(size=true.shape)).argmax(axis=1)
    demonstrations = chosen(said, TRIES, tilted)

    def pairs(prompts):
        said, true = draws(prompts, 2)
        first = rng.random(len(prompts)) < 1 / (1 + np.exp(true[:, 1] - true[:, 0]))
        return Preferences(
            chosen(said, 2, np.where(first, 0, 1)), chosen(said, 2, np.where(first, 1, 0))
        )

    judged = asked(np.repeat(judged, ANSWERS, axis=0))
    return World(base, name, demonstrations, pairs(compared), pairs(held), judged)
