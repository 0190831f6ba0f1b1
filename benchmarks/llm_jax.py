"""Our side of `benchmarks.llm_steps`: steps of SFT, DPO and a bilevel round, as `solve` takes them.

`python -m benchmarks.llm_jax FOLDER`, where `FOLDER/shapes.json` holds `llm_steps.Shapes`. It
writes random checkpoints and tokens there for the other side, and answers requests.
"""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import turns
from benchmarks.llm_steps import BETA, FILES, RATE, Shapes, drawn
from bilevel import host
from bilevel.apps.llm.hub import checkpoint
from bilevel.apps.llm.methods import direct, reward_learning, sft, single_level
from bilevel.apps.llm.methods.task import Feedback, Task, data
from bilevel.apps.llm.models import parameters, trainable
from bilevel.apps.llm.models.config import llama
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.policy import Preferences, Responses, referred
from bilevel.apps.llm.policy_steps.policy_step import LeaveOneOut
from bilevel.apps.llm.rewards.reward import Head
from bilevel.methods import TTSA
from bilevel.problem import Batch
from bilevel.updates import FromOptax


def responses(prompts: np.ndarray, said: np.ndarray) -> Responses:
    asked = model.PromptBatch(jnp.asarray(prompts), jnp.ones(prompts.shape, bool))
    return Responses(asked, jnp.asarray(said), jnp.ones(said.shape, bool))


class Ours:
    """The cases; those of a single level share one state, as the other side's share a model."""

    def __init__(self, folder: Path, shapes: Shapes):
        self.shapes, self.config = shapes, llama(**shapes.model, tied=True)
        make = jax.jit(functools.partial(parameters.init, self.config))
        self.params = make(jax.random.key(0))
        other = make(jax.random.key(1))
        for name, params in zip(FILES, (self.params, other), strict=True):
            checkpoint.save(checkpoint.new(self.config, params), folder / name)
        self.policy = model.Decoder(
            self.config, None, trainable.FullFineTune(), Drawing(new=shapes.answer)
        )
        rows = {name: responses(*arrays) for name, arrays in drawn(shapes).items()}
        pairs = (referred(self.policy, other, rows[side]) for side in ("chosen", "rejected"))
        likelihood, dpo = sft.Likelihood(self.policy), direct.Direct(
            self.policy, jnp.asarray(BETA), jnp.asarray(0.0))  # fmt: skip
        self.rows = rows
        self.posed = {
            "SFT": (likelihood, Feedback(rows["SFT"])),
            "SFT, no prompts": (likelihood, Feedback(rows["SFT, no prompts"])),
            "DPO": (dpo, Feedback(preferences=Preferences(*pairs))),
        }
        self.update = FromOptax(optax.adamw, RATE, weight_decay=0.01)
        self.method = TTSA(self.update)
        self.state: Any = None

    def loss(self, name: str) -> float:
        loss, feedback = self.posed[name]
        value = float(eqx.filter_jit(loss)(self.params, feedback))
        return value if name == "DPO" else value / feedback.demonstrations.tokens.shape[1]

    def step(self, name: str) -> None:
        loss, feedback = self.posed[name]
        posed = single_level.single(loss)
        if self.state is None:
            self.state = self.method.init(posed, self.params, jnp.zeros(()))
        self.state = jax.block_until_ready(advance(posed, self.method, Batch(feedback), self.state))

    def round(self) -> None:
        """One step of AIHF: a policy step on drawn responses, and the reward's hypergradient."""
        if not hasattr(self, "feed"):
            head = Head(model.Trunk(self.config), self.params)
            few = jax.tree.map(lambda leaf: leaf[: len(leaf) // 2], self.rows["SFT"])
            given = Task(self.policy, self.params, BETA, head, few)
            self.goal = reward_learning.problem(
                given, LeaveOneOut(self.update, samples=2), decay=1e-3
            )
            x = jax.tree.map(jnp.zeros_like, head.init(jax.random.key(2), self.config.width))
            self.feed = data(given).feed(jax.random.key(3), self.method.draws(self.goal))
            self.pair = self.method.init(self.goal, x, self.params)
        self.pair = jax.block_until_ready(
            advance(self.goal, self.method, self.feed.batch(self.pair.k), self.pair)
        )


@eqx.filter_jit(donate="all-except-first")
def _advance(fixed, state):
    posed, method, batch = fixed
    return method.step(posed, state, batch)[0]


def advance(posed, method: TTSA, batch: Batch, state):
    """One step, which takes the place of the state given."""
    return _advance((posed, method, batch), state)


def main() -> None:
    out, folder = turns.quiet(), Path(sys.argv[1])
    host.keep_memory()  # as our commands do
    ours = Ours(folder, Shapes(**json.loads((folder / "shapes.json").read_text())))
    cases: dict[str, Callable[[], Any]] = {"round": ours.round}
    for name in ours.posed:
        cases[name] = functools.partial(ours.step, name)
        cases[f"{name}: loss"] = functools.partial(ours.loss, name)
    turns.serve(cases, out)


if __name__ == "__main__":
    main()
