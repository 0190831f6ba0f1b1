"""What 1.2 billion parameters take of each of eight devices: compiled, not run.

The devices are eight of the host's, so the memory is what XLA plans for a processor; a compiler for
GPUs fuses more and needs less. `python -m benchmarks.billion`
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from benchmarks import harness
from benchmarks.harness import Row
from bilevel.apps.llm.methods.reward_learning import problem
from bilevel.apps.llm.methods.task import Feedback, Task, Weights
from bilevel.apps.llm.models import decoder, parameters, sharding, transformer
from bilevel.apps.llm.models.config import Layers, llama
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import FullFineTune
from bilevel.apps.llm.policies.model import Decoder, PromptBatch, Trunk
from bilevel.apps.llm.policies.policy import Preferences, Responses
from bilevel.apps.llm.policy_steps.policy_step import LeaveOneOut, LowerStep, Prompts
from bilevel.apps.llm.rewards.reward import Head
from bilevel.problem import Batch
from bilevel.updates import FromOptax

DEVICES, SHAPE = 8, (4, 2)
CONFIG = llama(128_256, 2048, 8192, 16, 32, kv_heads=8, tied=True)
ROWS, PROMPT, NEW = 8, 512, 512


class Plan(NamedTuple):
    """Bytes of one device, and seconds to compile."""

    parameters: int
    arguments: int
    temporaries: int
    results: int
    seconds: float


def devices() -> Mesh:
    return sharding.make_mesh(*SHAPE)


def how(mesh: Mesh) -> transformer.ComputeOptions:
    return transformer.ComputeOptions(
        remat=transformer.Remat.LAYERS, pin=sharding.activations(mesh)
    )


def training(mesh: Mesh) -> Plan:
    """A gradient step on the likelihood of 8 rows of 1024 tokens, in bfloat16."""

    def step(params, tokens):
        def loss(params):
            params = sharding.constrain(CONFIG, params, mesh)
            found = decoder.token_logprobs(CONFIG, params, tokens, compute=how(mesh), chunk=128)
            return -found.mean()

        gradient = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - jnp.asarray(1e-3, p.dtype) * g, params, gradient)

    tokens = jax.ShapeDtypeStruct((ROWS, PROMPT + NEW), jnp.int32, sharding=sharding.rows(mesh))
    return _planned(step, (0,), _params(mesh), tokens)


def aligning(mesh: Mesh) -> Plan:
    """A step of AIHF on all parameters: responses drawn, a policy step by Adam, a reward step.

    8 prompts of 512 tokens, 2 responses of up to 512 to each, 8 demonstrations, 8 pairs; the reward
    is a head on the model as it was given, which is the reference too.
    """
    step = LeaveOneOut(FromOptax(optax.adam, 1e-6), samples=2)

    def posed(params):
        policy = Decoder(CONFIG, None, FullFineTune(), Drawing(new=NEW, stop=(1,)), how(mesh))
        head = Head(Trunk(CONFIG, compute=how(mesh)), params)
        found = problem(Task(policy, params, 0.1, head), step, weights=Weights(0.5, 0.5))
        assert isinstance(found.lower_step, LowerStep)
        assert found.hypergradient is not None
        return found.lower_step, found.hypergradient

    def one(x, y, memory, params, feedback, prompts):
        moves, slope = posed(params)
        y, memory = moves(x, y, memory, prompts)
        down = slope(x, y, Batch(feedback, prompts))
        x = jax.tree.map(lambda x, h: x - jnp.asarray(1e-3, x.dtype) * h, x, down)
        return (x, *sharding.constrain(CONFIG, (y, memory), mesh))

    params = _params(mesh)
    x = {"weight": jax.ShapeDtypeStruct((CONFIG.width, 1), jnp.float32),
         "bias": jax.ShapeDtypeStruct((1,), jnp.float32)}  # fmt: skip
    memory = jax.eval_shape(lambda x, y: posed(y)[0].init(x, y), x, params)

    def rows(width, dtype) -> Any:
        return jax.ShapeDtypeStruct((ROWS, width), dtype, sharding=sharding.rows(mesh))

    asked = PromptBatch(rows(PROMPT, jnp.int32), rows(PROMPT, bool))
    said = Responses(asked, rows(NEW, jnp.int32), rows(NEW, bool))
    prompts = Prompts(asked, jax.eval_shape(lambda: jax.random.key(0)))
    feedback = Feedback(said, Preferences(said, said))
    return _planned(one, (1, 2), x, params, _placed(memory, mesh), params, feedback, prompts)


def _params(mesh: Mesh) -> Any:
    return _placed(parameters.abstract(CONFIG, layers=Layers.SCAN, dtype=jnp.bfloat16), mesh)


def _placed(shapes: Any, mesh: Mesh) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        sharding.shardings(CONFIG, shapes, mesh),
    )


def _planned(step: Callable, donated: tuple[int, ...], *arguments: Any) -> Plan:
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=donated).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return Plan(
        parameters.size(CONFIG),
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes,
        time.perf_counter() - start,
    )


CASES = {"training step": training, "AIHF step": aligning}


def readme() -> str:
    """What the README shows of the last run."""
    kept = json.loads((harness.RESULTS / "billion.json").read_text())["rows"]
    found = {row["what"]: row["ours"] for row in kept}
    arguments, temporaries = found["AIHF step: arguments"], found["AIHF step: temporaries"]
    return (
        f"`python -m benchmarks.billion` compiles a step of AIHF on all {found['parameters']:.2f} "
        f"billion parameters for eight devices: {arguments:.1f} GiB of each for the arguments and "
        f"{temporaries:.1f} GiB while it runs."
    )


def measure() -> list[Row]:
    rows = [Row("parameters", parameters.size(CONFIG) / 1e9, unit="billion")]
    for name, case in CASES.items():
        plan = case(devices())
        for part in ("arguments", "temporaries", "results"):
            gib = getattr(plan, part) / 2**30
            rows.append(Row(f"{name}: {part}", gib, unit="GiB a device"))
        rows.append(Row(f"{name}: compiling", plan.seconds, unit="s"))
    return rows


if __name__ == "__main__":
    # Read when the first device is asked for, so not too late here.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    harness.main("billion", measure)
