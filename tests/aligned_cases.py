"""A small alignment with everything in it: on one device, or on a mesh of one process or more."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from bilevel.apps.llm.methods.aihf import AIHF
from bilevel.apps.llm.methods.align import Start, align
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.models import parameters, sharding, transformer
from bilevel.apps.llm.models.config import Layers, llama
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import Adapter, FullFineTune
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.model import PromptBatch
from bilevel.apps.llm.policies.policy import Preferences, Responses, generate
from bilevel.apps.llm.policy_steps.policy_step import LeaveOneOut
from bilevel.apps.llm.rewards.reward import Head
from bilevel.driver import Result
from bilevel.updates import FromOptax

CONFIG = llama(16, 8, 16, 2, 4, kv_heads=2, max_length=32)
ROWS, PROMPT, NEW = 16, 3, 3


class Ended(NamedTuple):
    """What is compared: parameters, and what the policy says in the end."""

    policy: PyTree
    reward: PyTree
    said: Responses
    start: Start
    result: Result


def made(layers: Layers) -> parameters.Params:
    return parameters.init(
        CONFIG, jax.random.key(0), layers=layers, dtype=jnp.float64, deviation=0.5
    )


def feedback() -> tuple[Responses, Preferences]:
    """Demonstrations and preferences, with prompts padded on the left."""
    random = np.random.default_rng(0)

    def tokens(time):
        return jnp.asarray(random.integers(0, CONFIG.vocab_size, (ROWS, time)), jnp.int32)

    start = random.integers(0, PROMPT, (ROWS, 1))
    asked = PromptBatch(tokens(PROMPT), jnp.asarray(np.arange(PROMPT)[None] >= start))

    def responses():
        said = np.arange(NEW)[None] < random.integers(1, NEW + 1, (ROWS, 1))
        return Responses(asked, tokens(NEW), jnp.asarray(said))

    return responses(), Preferences(responses(), responses())


def ended(
    trained: Adapter | FullFineTune,
    params: parameters.Params,
    mesh: Mesh | None = None,
    steps: int = 2,
    **options: Any,
) -> Ended:
    """AIHF in a single loop: responses drawn, a policy step, a reward step.

    With an adapter the reward is a head on the given parameters, which rest; otherwise its trunk
    is learned like all of the policy.
    """
    place: Callable = (lambda tree: tree) if mesh is None else _placed(mesh)
    how = transformer.ComputeOptions(pin=None if mesh is None else sharding.activations(mesh))
    whole = isinstance(trained, FullFineTune)
    params = place(params)
    reference = params if whole else place(trained.init(CONFIG, jax.random.key(1)))
    policy = model.Decoder(
        CONFIG, None if whole else params, trained, Drawing(new=NEW, stop=(7,)), how
    )
    head = Head(model.Trunk(CONFIG, compute=how), None if whole else params)
    reward = head.init(jax.random.key(2), CONFIG.width, trunk=params if whole else None)
    # Linear in the gradient: Adam divides rounding by rounding where the gradient is zero.
    update = FromOptax(optax.sgd, 0.05, momentum=0.9)
    task = Task(policy, reference, 0.1, head, *feedback())
    start = Start(place(reward), reference)
    found = align(
        task,
        AIHF(LeaveOneOut(update, samples=2), x_update=update),
        steps=steps,
        reward=start.reward,
        key=jax.random.key(3),
        batch_size=8,
        prompts=4,
        progress=False,
        **options,
    )
    said = generate(policy, found.policy, task.prompts_to_answer(), jax.random.key(4))
    return Ended(found.policy, found.reward, said, start, found.results[-1])


def _placed(mesh: Mesh) -> Callable:
    return lambda tree: sharding.put(CONFIG, tree, mesh)
