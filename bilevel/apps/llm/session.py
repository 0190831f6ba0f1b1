"""From files to an aligned checkpoint folder: what `bilevel align` and `bilevel sft` do.

given = load(Path("model"), Path("demos.jsonl"), Path("prefs.jsonl"), Settings())
found = train(given, Path("aligned.run"))
save(given, found, Path("aligned"))
"""

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from bilevel import sharding as devices
from bilevel.apps.llm import align as aligning
from bilevel.apps.llm import baselines, checkpoint, decoder, model, sampling, sharding, tokenizer
from bilevel.apps.llm import data as files
from bilevel.apps.llm.align import AbstractAlignment, Aligned
from bilevel.apps.llm.config import Config
from bilevel.apps.llm.decoder import How
from bilevel.apps.llm.packing import packed
from bilevel.apps.llm.policy import Preferences, Responses, log_ratio, referred
from bilevel.apps.llm.policy_step import LeaveOneOut
from bilevel.apps.llm.reward import Head
from bilevel.apps.llm.self_play import SPIN
from bilevel.apps.llm.task import Task
from bilevel.driver import Outcome, Status
from bilevel.updates import FromOptax

SHORT = 8  # tokens of a response for which prompts are remembered, at most


class Method(enum.Enum):
    """What can be asked for by name."""

    IRL = "irl"
    AIHF = "aihf"
    AIHF_DPO = "aihf-dpo"
    RLHF = "rlhf"
    DPO = "dpo"
    IPO = "ipo"
    SPIN = "spin"
    SFT = "sft"

    @property
    def learns_reward(self) -> bool:
        return self in (Method.IRL, Method.AIHF, Method.RLHF)

    @property
    def needs(self) -> tuple[bool, bool]:
        """Whether demonstrations, and preferences, are needed."""
        demos = {Method.IRL, Method.AIHF, Method.AIHF_DPO, Method.SPIN, Method.SFT}
        pairs = {Method.AIHF_DPO, Method.RLHF, Method.DPO, Method.IPO}
        return self in demos, self in pairs


@dataclass(frozen=True)
class Settings:
    """How to align.

    Args:
        steps: of the reward (IRL, AIHF) or of the policy.
        batch: rows of each kind of feedback, and prompts to answer, a step.
        samples: responses to a prompt, for methods that draw.
        beta: weight of the divergence from the model given.
        rate, reward_rate: Adam's step sizes.
        rank, layers: of the LoRA adapter; rank 0 trains all parameters, `layers` None adapts all.
        length: tokens of a prompt and its response; the model's own limit when absent.
        new: longest response to draw; that of the data when absent.
        held_out: share of the feedback to judge by.
        divergence: nats of KL at which the run is ended.
        memory: GiB for what the layers that rest make of the prompts. Where it suffices, only the
            last `layers` are adapted and responses are short, it is computed once, before; else, or
            with 0, anew in every step.
        mesh: devices that rows, and heads with the vocabulary, are split over; the weights over
            both. One device when absent.
    """

    method: Method = Method.AIHF
    steps: int = 200
    batch: int = 8
    samples: int = 4
    beta: float = 0.1
    rate: float = 1e-4
    reward_rate: float = 1e-2
    rank: int = 8
    layers: int | None = None
    length: int | None = None
    new: int | None = None
    held_out: float = 0.1
    divergence: float = 100.0
    memory: float = 2.0
    mesh: tuple[int, int] | None = None
    log_every: int = 10
    seed: int = 0


class Session(NamedTuple):
    """A model with its task."""

    checkpoint: checkpoint.Checkpoint
    tokenizer: tokenizer.Tokenizer
    settings: Settings
    policy: model.Decoder | model.Remembered
    asked: model.Asked  # all prompts; a policy that remembers reads the numbers of its rows
    task: Task
    reward: PyTree | None  # parameters to start from
    held: Preferences | None  # pairs to judge by
    shown: Responses | None  # demonstrations to judge by
    rows: int  # of each kind of feedback, a step
    tokens: float  # of feedback and responses, a step
    how: AbstractAlignment


class Found(NamedTuple):
    """What came out."""

    policy: PyTree
    reward: PyTree | None
    history: dict[str, np.ndarray]
    status: Status
    aligned: Aligned
    speed: float  # tokens a second


# --- before ----------------------------------------------------------------------------------


def load(folder: Path, demos: Path | None, prefs: Path | None, settings: Settings) -> Session:
    """Read and check everything.

    Raises:
        FileNotFoundError, ValueError, ImportError: what is wrong, in a sentence.
    """
    needs = settings.method.needs
    for given, needed, name in ((demos, needs[0], "--demos"), (prefs, needs[1], "--prefs")):
        if needed and given is None:
            raise ValueError(f"{settings.method.value} needs {name}, a JSONL file.")
    text = tokenizer.load(folder)
    length = settings.length
    # The data are checked before the weights are read, which may take minutes.
    about = checkpoint.config_json.read(checkpoint.read_json(folder / "config.json", folder))
    if length is not None and length > about.max_length:
        raise ValueError(f"the model reads {about.max_length} tokens; {length} were asked for.")
    how = {"context": length or about.max_length, "end": True}
    rows = [] if demos is None else files.encode(
        files.demonstrations(demos), text, file=demos, **how)  # fmt: skip
    pairs = [] if prefs is None else files.encode_pairs(
        files.preferences(prefs), text, file=prefs, **how)  # fmt: skip
    mesh = mesh_of(settings)
    place = None if mesh is None else sharding.placer(about, mesh)
    loaded = checkpoint.load(folder, dtype=jnp.float32, place=place)
    return prepare(loaded, text, rows, pairs, settings)


def mesh_of(settings: Settings) -> Mesh | None:
    """The devices to use, where they are several.

    Raises:
        ValueError: there are fewer, they do not share a batch equally, or a process has none.
    """
    processes, found = jax.process_count(), jax.device_count()
    rows, heads = settings.mesh or (1, 1)
    if min(rows, heads) < 1:
        raise ValueError(f"--mesh is {rows},{heads}; two numbers of at least 1 are needed.")
    if processes > 1 and rows * heads != found:
        raise ValueError(
            f"--mesh has {rows * heads} devices, and the {processes} processes have {found}. Take "
            f"all of them, for example --mesh {found},1."
        )
    if rows * heads == 1:
        return None
    if settings.batch % rows:
        raise ValueError(
            f"--batch is {settings.batch}, which cannot be split over the {rows} devices of --mesh "
            f"{rows},{heads}; a multiple of {rows} is needed."
        )
    return sharding.make_mesh(rows, heads)


def _check_rows(kind: str, rows: int, settings: Settings) -> None:
    """With fewer rows than a batch, a batch is all of them."""
    parts = settings.mesh[0] if settings.mesh else 1
    if rows < settings.batch and rows % parts:
        raise ValueError(
            f"{rows} {kind} to learn from are fewer than --batch {settings.batch}, and cannot be "
            f"split over {parts} devices. Give more of them, a smaller --batch or another --mesh."
        )


def prepare(
    loaded: checkpoint.Checkpoint,
    text: tokenizer.Tokenizer,
    rows: list[files.Row],
    pairs: list[files.RowPair],
    settings: Settings,
) -> Session:
    """Arrays, policy, reward and task."""
    rows, shown = _parted(rows, settings)
    pairs, held = _parted(pairs, settings)
    mesh = mesh_of(settings)
    _check_rows("demonstrations", len(rows), settings)
    _check_rows("preferences", len(pairs), settings)
    every = [*rows, *shown, *(side for pair in (*pairs, *held) for side in pair)]
    longest = max(len(row.response) for row in every)
    new = settings.new or longest
    distinct = {tuple(row.prompt): row for row in every}
    number = {prompt: i for i, prompt in enumerate(distinct)}
    table = model.asked(list(distinct.values()), pad_id=text.pad)
    config, params, key = loaded.config, loaded.params, jax.random.key(settings.seed)
    everything = settings.rank == 0
    trained = model.Everything() if everything else model.Adapter(settings.rank, settings.layers)
    reference = params if isinstance(trained, model.Everything) else trained.init(config, key)
    drawing = sampling.Drawing(new=new, stop=text.stop)
    memory, decoding = None, How()
    if mesh is not None:
        decoding = How(pin=sharding.activations(mesh))
        reference = sharding.put(config, reference, mesh)
    if (
        mesh is None
        and isinstance(trained, model.Adapter)
        and _pays(trained, config, table, max(longest, new), settings)
    ):
        memory = model.remember(config, params, table, below=trained.below(config))
        params = decoder.stack(params)  # in this order one program does for all layers that rest
        loaded = replace(loaded, params=params)
        policy = model.Remembered(config, params, memory, trained, drawing)
    else:
        policy = model.Decoder(config, None if everything else params, trained, drawing, decoding)
    head, start = None, None
    if settings.method.learns_reward:
        trunk = model.Trunk(config, how=decoding)
        if memory is not None:
            trunk = model.RememberedTrunk(config, memory)
        head = Head(trunk, params)
        start = jax.tree.map(jnp.zeros_like, head.init(key, config.width))

    def asked(some: list[files.Row]) -> PyTree:
        at = jnp.asarray([number[tuple(row.prompt)] for row in some], jnp.int32)
        return jax.tree.map(lambda leaf: leaf[at], table) if memory is None else at

    def responses(some: list[files.Row]) -> Responses:
        found = model.responses(some, asked(some), pad_id=text.pad, length=longest)
        if head is None or not isinstance(head.hidden, model.RememberedTrunk):
            return found
        return model.known(head.hidden, params, found)

    def demonstrations(some: list[files.Row]) -> Responses | None:
        return responses(some) if some else None

    def preferences(some: list[files.RowPair]) -> Preferences | None:
        if not some:
            return None
        return Preferences(*(responses([pair[side] for pair in some]) for side in (0, 1)))

    how, batch, tokens = method(settings), settings.batch, 0
    if isinstance(how, baselines.SFT) and memory is None:
        length = settings.length or max(len(row.prompt) + len(row.response) for row in rows)
        learned, per_row = packed(rows, length)
        how = baselines.SFT(how.update, per_row)
        parts = settings.mesh[0] if settings.mesh else 1
        batch = parts * max(1, round(settings.batch / per_row / parts))
        tokens = batch * length
    else:
        learned = demonstrations(rows)
        kinds = bool(rows) + 2 * bool(pairs)
        tokens = kinds * batch * (table.tokens.shape[1] + longest)
    if settings.method.learns_reward:
        tokens += settings.samples * batch * (table.tokens.shape[1] + new)
    task = Task(
        policy,
        reference,
        settings.beta,
        head,
        learned,
        preferences(pairs),
        asked(rows or [pair.chosen for pair in pairs]),
    )
    return Session(
        loaded,
        text,
        settings,
        policy,
        table,
        # What is not split is copied to every device.
        devices.settle(task, mesh),
        devices.settle(start, mesh),
        devices.settle(preferences(held), mesh),
        devices.settle(demonstrations(shown), mesh),
        batch,
        float(tokens),
        how,
    )


def _pays(trained: model.Adapter, config: Config, asked: model.Asked, longest: int, settings):
    """Whether prompts are to be remembered: drawing t tokens then takes t passes."""
    if not trained.below(config) or longest > min(SHORT, asked.tokens.shape[1]):
        return False
    return model.memory_bytes(config, asked) <= settings.memory * 2**30


def _parted(rows, settings: Settings):
    return files.split(rows, settings.held_out, settings.seed) if len(rows) > 1 else (rows, [])


def method(settings: Settings) -> AbstractAlignment:
    """The object that a name stands for."""
    update = FromOptax(optax.adam, settings.rate)
    upper = FromOptax(optax.adam, settings.reward_rate)
    step = LeaveOneOut(update, samples=settings.samples)
    rows = settings.batch
    match settings.method:
        case Method.IRL:
            return aligning.IRL(step, x_update=upper, decay=1e-3)
        case Method.AIHF:
            return aligning.AIHF(step, x_update=upper, decay=1e-3)
        case Method.AIHF_DPO:
            return baselines.AIHFDPO(update, rows=rows)
        case Method.RLHF:
            return baselines.RLHF(step, settings.steps, baselines.RewardModel(upper, 1e-3))
        case Method.DPO:
            return baselines.DPO(update, rows=rows)
        case Method.IPO:
            return baselines.IPO(settings.beta, False, update, rows=rows)
        case Method.SPIN:
            return SPIN(update, rows=rows)
        case Method.SFT:
            return baselines.SFT(update)


# --- while it runs -----------------------------------------------------------------------------


def metrics(given: Session) -> dict[str, Callable[[PyTree, PyTree], Array]]:
    """What is looked at, as functions of the reward's and the policy's parameters.

    KL, the policy's reward, and on held-out feedback the share of pairs in the right order (by the
    reward where one is learned, else by the policy's log-ratio) and the loss of demonstrations.
    """
    task, batch = given.task, given.settings.batch
    policy, reference, reward = task.policy, task.reference, task.reward
    few = jax.tree.map(lambda leaf: leaf[: 2 * batch], task.asked())
    # Bound as a Partial, arrays are arguments of the compiled program, not constants in it.
    found = {"KL": Partial(_divergence, policy, reference, few)}
    if reward is not None:
        found["reward"] = Partial(_reward, policy, reward, few)
    if given.held is not None and reward is not None:
        found["spread"] = Partial(_spread, reward, given.held)
        found["accuracy"] = Partial(_accuracy, reward, given.held)
    elif given.held is not None:
        pairs = (referred(policy, reference, side, rows=batch) for side in given.held)
        found["accuracy"] = Partial(_implicit_accuracy, policy, Preferences(*pairs))
    if given.shown is not None:
        found["loss"] = Partial(_loss, policy, given.shown)
    return found


def _said(policy, few, y):
    return policy.sample(y, few, jax.random.key(7))  # the same draws every time


def _divergence(policy, reference, few, x, y):
    words = _said(policy, few, y)
    return (policy.logprob(y, words) - policy.logprob(reference, words)).mean()


def _reward(policy, reward, few, x, y):
    return reward(x, _said(policy, few, y)).mean()


def _spread(reward, pairs, x, y):
    return jnp.abs(reward(x, pairs.chosen) - reward(x, pairs.rejected)).mean()


def _accuracy(reward, pairs, x, y):
    return (reward(x, pairs.chosen) > reward(x, pairs.rejected)).mean()


def _implicit_accuracy(policy, pairs, x, y):
    return (log_ratio(policy, y, pairs.chosen) > log_ratio(policy, y, pairs.rejected)).mean()


def _loss(policy, shown, x, y):
    return -policy.logprob(y, shown).mean()


class Watch:
    """Ends a run that goes wrong, and keeps what it was before.

    Wrong is a KL above its limit, or a reward that no longer tells held-out responses apart.
    """

    def __init__(self, given: Session, told: Callable[[str], Any]):
        self._settings, self._tokens, self._told = given.settings, given.tokens, told
        self._start = given.task.reference
        self._before, self._spread = (0, time.perf_counter()), 0.0
        self.good: tuple[int, PyTree, PyTree] | None = None
        self.why: str | None = None

    def __call__(self, step: int, state: Any, row: Any) -> bool:
        self.why = self._wrong(row)
        now = time.perf_counter()
        before = self._before[0] if self._before[0] < step else 0  # a phase counts anew
        speed = (step - before) * self._tokens / (now - self._before[1])
        self._before = step, now
        names = ("reward", "KL", "accuracy", "loss")
        told = ", ".join(f"{name} {row[name]:.3g}" for name in names if name in row)
        self._told(f"step {step}: {told}, {speed:,.0f} tokens/s")
        if self.why is None:
            self.good = step, *self._both(state)
        return self.why is not None

    def _both(self, state) -> tuple[PyTree, PyTree]:
        """Reward and policy; where a single level is minimised, x is the one that moves."""
        if not self._settings.method.learns_reward:
            return None, state.x
        alone = jax.tree.structure(state.y) != jax.tree.structure(self._start)
        return state.x, self._start if alone else state.y

    def _wrong(self, row) -> str | None:
        if not row["KL"] <= self._settings.divergence:
            return (
                f"KL explosion: the policy is {row['KL']:.3g} nats from the model it started from. "
                "Raise --beta, lower --rate, or make fewer steps."
            )
        spread = row.get("spread", 1.0)
        self._spread = max(self._spread, spread)
        if self._spread > 1e-3 and spread < 1e-2 * self._spread:
            return (
                "reward collapse: the reward no longer tells held-out responses apart. Lower "
                "--reward-rate, or give preferences along with demonstrations."
            )
        return None


def train(
    given: Session, folder: Path | None, *, told: Callable[[str], Any] = lambda line: None,
    steps: int | None = None
) -> Found:  # fmt: skip
    """Align, with the state of the run kept in a folder; goes on where an earlier call ended.

    Raises:
        ValueError: out of memory, with what to lower.
    """
    settings, watch = given.settings, Watch(given, told)
    steps = settings.steps if steps is None else steps
    start = time.perf_counter()
    try:
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
            callbacks=(watch,),
            progress=False,
            checkpoint=folder,
        )
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ValueError(LOWER) from error
    result = aligned.results[-1]
    x, y, status = aligned.reward, aligned.policy, result.status
    if watch.why is not None:
        kept = "the model as it was given"
        x, y = given.reward, given.task.reference
        if watch.good is not None:
            step, x, y = watch.good
            kept = f"the model of step {step}"
        status = Status(Outcome.DIVERGED, f"{watch.why} Kept: {kept}.")
    made = sum(result.stats.steps for result in aligned.results)
    speed = made * given.tokens / (time.perf_counter() - start)
    return Found(y, x, result.history, status, aligned, speed)


LOWER = (
    "out of memory. Lower --batch, --samples, --length or --new; or adapt fewer --layers with a "
    "smaller --rank."
)


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


# --- after -------------------------------------------------------------------------------------


def merged(given: Session, policy: PyTree) -> checkpoint.Checkpoint:
    """The checkpoint with what was learned."""
    loaded = given.checkpoint
    params = given.policy.trained.merge(loaded.config, loaded.params, policy)
    return replace(loaded, params=params)


def answers(given: Session, policy: PyTree, count: int = 6) -> list[tuple[str, str]]:
    """Prompts, held-out where there are, with the likeliest answers."""
    rows = given.shown or (given.held and given.held.chosen)
    asked = given.task.asked() if rows is None else rows.prompts
    asked = jax.tree.map(lambda leaf: leaf[:count], asked)
    if not isinstance(asked, model.Asked):
        at = model.numbers(asked)
        asked = jax.tree.map(lambda leaf: leaf[at], given.asked)
    drawing = replace(given.policy.drawing, temperature=0.0)
    config = given.checkpoint.config
    said = model.generate(
        config,
        merged(given, policy).params,
        *asked,
        key=jax.random.key(0),
        drawing=drawing,
        how=given.policy.how,
    )
    tokens, response = map(checkpoint.fetch, (said.tokens, said.response))
    prompts, mask = np.asarray(asked.tokens), np.asarray(asked.mask)
    return [
        (given.tokenizer.decode(p[m]), given.tokenizer.decode(t[r]))
        for p, m, t, r in zip(prompts, mask, tokens, response, strict=True)
    ]


def save(given: Session, found: Found, out: Path) -> None:
    """Write the Hugging Face folder."""
    kind = given.checkpoint.about.get("dtype", given.checkpoint.about.get("torch_dtype"))
    dtype = kind if kind in ("float32", "float16", "bfloat16") else "float32"
    checkpoint.save(merged(given, found.policy), out, dtype=jnp.dtype(dtype))


__all__ = ["Found", "Method", "Session", "Settings", "answers", "load", "prepare", "save", "train"]
