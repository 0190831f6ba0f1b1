"""What a step of ScaleBiO costs against one of SFT on the same rows, and what it holds.

`python -m benchmarks.mixing_steps`. A random Llama in float32; three sources of four rows and four
rows of the target, so that 2 + 1/3 is ideal: two copies of the model on the rows of the sources,
one on those of the target. Operations and memory are those that XLA tells of the compiled step;
seconds are the processor's, the fastest of several steps.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import RESULTS
from bilevel.apps.llm.mixing import scalebio
from bilevel.apps.llm.mixing.task import TokenLoss, training
from bilevel.apps.llm.models import config, parameters
from bilevel.apps.llm.models.lisa import LISA
from bilevel.apps.llm.models.trainable import Adapter, FullFineTune
from bilevel.apps.llm.policies.model import Decoder, PromptBatch
from bilevel.apps.llm.policies.policy import Responses
from bilevel.methods import TTSA
from bilevel.problem import Batch, RepeatedBatch
from bilevel.updates import FromOptax

MODEL = config.llama(2048, 192, 512, 6, 4, tied=True, max_length=64)
SOURCES, ROWS, PROMPT, ANSWER = 3, 4, 32, 32
MIB = 1 << 20


class Cost(NamedTuple):
    what: str
    trained: int  # parameters of a copy that has a gradient
    state: float  # MiB: what is iterated, and what the updates remember
    rest: float  # MiB: frozen parameters
    peak: float  # MiB more, within a step
    operations: float  # 10⁹
    seconds: float


def rows(draw: np.random.Generator, n: int) -> Responses:
    tokens = jnp.asarray(draw.integers(2, MODEL.vocab_size, (n, PROMPT + ANSWER)), jnp.int32)
    prompts = PromptBatch(tokens[:, :PROMPT], jnp.ones((n, PROMPT), bool))
    return Responses(prompts, tokens[:, PROMPT:], jnp.ones((n, ANSWER), bool))


def cost(what: str, problem, method, x0, frozen, batch: Batch, repeats: int) -> Cost:
    """Of a compiled step, as `bl.solve` runs it."""
    state = method.init(problem, x0, jnp.zeros(()))
    step: Callable = jax.jit(lambda p, s, b: method.step(p, s, b)[0], donate_argnums=1)
    compiled = step.lower(problem, state, batch).compile()
    trained, size, rest = count(x0), bytes_of(state), bytes_of(frozen)
    memory: Any = compiled.memory_analysis()
    told: Any = compiled.cost_analysis()
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        state = jax.block_until_ready(compiled(problem, state, batch))
        times.append(time.process_time() - begun)
    peak = memory.temp_size_in_bytes
    return Cost(what, trained, size, rest, peak / MIB, told["flops"] / 1e9, min(times))


def count(tree: Any) -> int:
    parameters = tree.y if isinstance(tree, scalebio.Copies) else tree
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))


def bytes_of(tree: Any) -> float:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / MIB


def costs(repeats: int) -> list[Cost]:
    draw, params = np.random.default_rng(0), parameters.init(MODEL, jax.random.key(0))
    sources = tuple(rows(draw, ROWS) for _ in range(SOURCES))
    target, together = rows(draw, ROWS), jax.tree.map(lambda *r: jnp.concatenate(r), *sources)
    adam, weights = FromOptax(optax.adamw, 1e-4), FromOptax(optax.adam, 1e-2)
    full, lora = Decoder(MODEL, None, FullFineTune()), Decoder(MODEL, params, Adapter(8))
    adapter = Adapter(8).init(MODEL, jax.random.key(1))
    lisa = [LISA(adam, seed=copy) for copy in range(2)]
    ways = {
        "full": (full, params, None, adam, adam),
        "LISA, 2 of 6 layers": (full, params, None, *lisa),
        "LoRA, rank 8": (lora, adapter, params, adam, adam),
    }
    found = []
    for name, (policy, start, frozen, first, second) in ways.items():
        loss = TokenLoss(policy)
        task = f"SFT, {name}", training(loss), TTSA(first), start
        found.append(cost(*task, frozen, Batch(together, RepeatedBatch(None)), repeats))
        method = scalebio.method(first, weights, second)
        task = f"ScaleBiO, {name}", scalebio.problem(loss), method, scalebio.start(SOURCES, start)
        found.append(cost(*task, frozen, Batch(target, RepeatedBatch(sources)), repeats))
        print(table(found[-2:]).splitlines()[-1], flush=True)
    return found


def table(found: list[Cost]) -> str:
    lines = [
        "| step | trained | frozen | state | peak besides | operations | of SFT | seconds of SFT |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for i, c in enumerate(found):
        sft = found[i - i % 2]
        lines.append(
            f"| {c.what} | {c.trained / 1e6:.2f} M | {c.rest:.0f} MiB | {c.state:.0f} MiB | "
            f"{c.peak:.0f} MiB | {c.operations:.1f} G | {c.operations / sft.operations:.2f} | "
            f"{c.seconds / sft.seconds:.2f} |"
        )
    return "\n".join(lines)


def readme() -> str:
    """What the docs show of the last run."""
    return table([Cost(**one) for one in json.loads((RESULTS / "mixing_steps.json").read_text())])


def main() -> None:
    options = argparse.ArgumentParser(description="The price of a step of ScaleBiO.")
    options.add_argument("--repeats", type=int, default=2)
    options.add_argument("--no-keep", action="store_true", help="leave the results file as it is")
    given = options.parse_args()
    found = costs(given.repeats)
    print(table(found))
    if not given.no_keep:
        kept = [one._asdict() for one in found]
        (RESULTS / "mixing_steps.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
