"""A small language model, trained here on plays of Shakespeare."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.gold_reward import reward, text
from benchmarks.gold_reward.feedback import Base, Sizes
from bilevel.apps.llm.methods.align import align
from bilevel.apps.llm.methods.sft import SFT
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.models import config, parameters
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import FullFineTune
from bilevel.apps.llm.policies.model import Decoder, PromptBatch
from bilevel.apps.llm.policies.policy import Responses
from bilevel.updates import Optax

MODEL = config.llama(text.VOCABULARY, 48, 128, 1, 4, tied=True, max_length=16)
STEPS, BATCH = 800, 64  # of the training of the base
PROMPTS = 2400  # stretches that the base never sees
SIZES = Sizes(400, 400, 400, 300, answers=4, tries=32, batch=64, prompts=32)
STOP = tuple(range(len(text.ENDS)))
POLICY = Decoder(MODEL, None, FullFineTune(), Drawing(new=text.RESPONSE, stop=STOP))


def base(seed: int = 0) -> Base:
    """The model, trained on all sentences but those whose beginnings are prompts."""
    found = text.read()
    order = np.random.default_rng(seed).permutation(len(found.prompts))
    some, kept = order[PROMPTS:], found.prompts[order[:PROMPTS]]
    whole = np.concatenate([found.prompts, found.responses], axis=1)[some]
    mask = np.concatenate([np.ones_like(found.prompts, bool), found.mask], axis=1)[some]
    first = PromptBatch(jnp.asarray(whole[:, :1]), jnp.asarray(mask[:, :1]))
    rows = Responses(first, jnp.asarray(whole[:, 1:]), jnp.asarray(mask[:, 1:]))
    start = parameters.init(MODEL, jax.random.key(seed))
    adam = optax.adamw(optax.warmup_cosine_decay_schedule(0, 4e-3, 50, STEPS), weight_decay=0.1)
    method = SFT(Optax(adam), per_row=float(mask.sum(axis=1).mean()))
    task = Task(POLICY, start, 1.0, demonstrations=rows)
    trained = align(task, method, steps=STEPS, batch_size=BATCH, log_every=STEPS, progress=False)

    def read(tokens, mask):
        return text.said(found, tokens, mask)

    prompts = PromptBatch(jnp.asarray(kept), jnp.ones(kept.shape, bool))
    return Base(POLICY, trained.policy, prompts, read, reward.reward, reward.start(), SIZES,
                found.words)  # fmt: skip
