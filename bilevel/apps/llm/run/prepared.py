"""A checkpoint and feedback, read, checked, and put into the arrays that alignment works on."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from bilevel import sharding as devices
from bilevel.apps.llm.data import batches, encode
from bilevel.apps.llm.hub import checkpoint, find, tokenizer
from bilevel.apps.llm.methods import sft
from bilevel.apps.llm.methods.align import AbstractAlignment
from bilevel.apps.llm.methods.task import Task
from bilevel.apps.llm.models import parameters, sharding
from bilevel.apps.llm.models.config import Config
from bilevel.apps.llm.models.lora import TARGETS
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import Adapter, FullFineTune
from bilevel.apps.llm.models.transformer import ComputeOptions
from bilevel.apps.llm.policies import model, prompt_cache
from bilevel.apps.llm.policies.packing import packed
from bilevel.apps.llm.policies.policy import Preferences, Responses
from bilevel.apps.llm.rewards.reward import Head
from bilevel.apps.llm.run import feedback
from bilevel.apps.llm.run.method import method
from bilevel.apps.llm.run.settings import Dtype, Settings

SHORT = 8  # tokens of a response for which prompts are remembered, at most
Policy = model.Decoder | prompt_cache.CachedDecoder


class Session(NamedTuple):
    """A model with its task."""

    checkpoint: checkpoint.Checkpoint
    tokenizer: tokenizer.Tokenizer
    settings: Settings
    policy: model.Decoder | prompt_cache.CachedDecoder
    asked: model.PromptBatch  # all prompts; a policy that remembers reads the numbers of its rows
    task: Task
    reward: PyTree | None  # parameters to start from
    held: Preferences | None  # pairs to judge by
    shown: Responses | None  # demonstrations to judge by
    rows: int  # of each kind of feedback, a step
    tokens: float  # of feedback and responses, a step
    how: AbstractAlignment
    notes: tuple[str, ...] = ()  # on the files


def load(model_name: Path, demos: Path | None, prefs: Path | None, settings: Settings) -> Session:
    """Read and check everything; `model_name` is what `find.find` takes.

    Raises:
        FileNotFoundError, ValueError, ImportError: what is wrong, in a sentence.
    """
    needs = settings.method.needs
    for file, needed, name in ((demos, needs[0], "--demos"), (prefs, needs[1], "--prefs")):
        if needed and file is None:
            raise ValueError(f"{settings.method.value} needs {name}, a JSONL or parquet file.")
    # The data are checked before the weights are read, which may take minutes.
    found = find.find(model_name)
    text, about, length = found.tokenizer, found.config, settings.length
    if length is not None and length > about.max_length:
        raise ValueError(f"the model reads {about.max_length} tokens; {length} were asked for.")
    given = feedback.read(demos, prefs, text, length or about.max_length, settings)
    mesh = mesh_of(settings)
    place = None if mesh is None else sharding.placer(about, mesh)
    loaded = found.load(dtype=jnp.float32, place=place)
    prepared = prepare(loaded, text, given.rows, given.pairs, settings)
    return prepared._replace(notes=given.notes)


def mesh_of(settings: Settings) -> Mesh | None:
    """The devices to use, where they are several.

    Raises:
        ValueError: there are fewer, they do not share a batch equally, or a process has none.
    """
    processes, found = jax.process_count(), jax.device_count()
    rows, heads = settings.mesh or (1, 1)
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


def check_rows(kind: str, rows: int, settings: Settings) -> None:
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
    rows: list[encode.Row],
    pairs: list[encode.RowPair],
    settings: Settings,
) -> Session:
    """Arrays, policy, reward and task."""
    rows, shown = _parted(rows, settings)
    pairs, held = _parted(pairs, settings)
    mesh, key = mesh_of(settings), jax.random.key(settings.seed)
    check_rows("demonstrations", len(rows), settings)
    check_rows("preferences", len(pairs), settings)
    every = [*rows, *shown, *(side for pair in (*pairs, *held) for side in pair)]
    longest = max(len(row.response) for row in every)
    distinct = {tuple(row.prompt): row for row in every}
    asked = model.prompt_batch(list(distinct.values()), pad_id=text.pad)
    room = (settings.length or loaded.config.max_length) - asked.tokens.shape[1]
    drawing = Drawing(new=settings.new or min(longest, room), stop=text.stop)
    policy = _policy(loaded, asked, drawing, longest, mesh, settings)
    if policy.params is not None:
        loaded = replace(loaded, params=policy.params)
    reference = loaded.params
    if isinstance(policy.trained, Adapter):
        reference = _placed(loaded.config, policy.trained.init(loaded.config, key), mesh)
    trunk = _trunk(policy, loaded, settings)
    reward, start = _reward(trunk, loaded, mesh, settings)
    read = _Reading(policy, trunk, asked, list(distinct), text.pad, longest)
    how, batch = method(settings), settings.batch
    prompt, said = asked.tokens.shape[1], asked.tokens.shape[1] + longest
    learned = read.demonstrations(rows)
    tokens = (bool(rows) + 2 * bool(pairs)) * batch * said
    if isinstance(how, sft.SFT) and isinstance(policy, model.Decoder):
        length = settings.length or max(len(row.prompt) + len(row.response) for row in rows)
        learned, per_row = packed(rows, length)
        how = sft.SFT(how.update, per_row)
        parts = settings.mesh[0] if settings.mesh else 1
        batch = parts * max(1, round(settings.batch / per_row / parts))
        tokens = batch * length
    if settings.method.learns_reward:
        tokens += settings.samples * settings.batch * (prompt + drawing.new)
    prompts = read.asked(rows or [pair.chosen for pair in pairs])
    compared = read.preferences(pairs)
    task = Task(policy, reference, settings.beta, reward, learned, compared, prompts)
    # What is not split is copied to every device.
    return Session(
        loaded,
        text,
        settings,
        policy,
        asked,
        devices.replicate_on(task, mesh),
        devices.replicate_on(start, mesh),
        devices.replicate_on(read.preferences(held), mesh),
        devices.replicate_on(read.demonstrations(shown), mesh),
        batch,
        float(tokens),
        how,
    )


class _Reading(NamedTuple):
    """Rows of text as a policy and a reward read them."""

    policy: Policy
    trunk: model.Trunk | prompt_cache.CachedTrunk | None  # of the reward
    every: model.PromptBatch
    prompts: list[tuple[int, ...]]  # of its rows
    pad: int | None
    longest: int  # response

    def asked(self, some: list[encode.Row]) -> PyTree:
        number = {prompt: i for i, prompt in enumerate(self.prompts)}
        at = jnp.asarray([number[tuple(row.prompt)] for row in some], jnp.int32)
        return self.policy.prompts_at(self.every, at)

    def responses(self, some: list[encode.Row]) -> Responses:
        found = model.responses(some, self.asked(some), pad_id=self.pad, length=self.longest)
        return found if self.trunk is None else self.trunk.cached(self.policy.params, found)

    def demonstrations(self, some: list[encode.Row]) -> Responses | None:
        return self.responses(some) if some else None

    def preferences(self, some: list[encode.RowPair]) -> Preferences | None:
        if not some:
            return None
        return Preferences(*(self.responses([pair[side] for pair in some]) for side in (0, 1)))


def _policy(
    loaded: checkpoint.Checkpoint,
    asked: model.PromptBatch,
    drawing: Drawing,
    longest: int,
    mesh: Mesh | None,
    settings: Settings,
) -> Policy:
    """With the prompts remembered where that pays."""
    config, params, compute = loaded.config, loaded.params, _compute(mesh, settings)
    if settings.rank == 0:
        return model.Decoder(config, None, FullFineTune(), drawing, compute)
    adapter = Adapter(settings.rank, settings.layers, settings.targets or TARGETS, settings.scale)
    longest = max(longest, drawing.new)
    if mesh is not None or not _pays(adapter, config, asked, longest, settings.memory):
        return model.Decoder(config, params, adapter, drawing, compute)
    below = adapter.below(config)
    memory = prompt_cache.cache_prompts(config, params, asked, below=below, compute=compute)
    # Stacked, one program does for all layers that rest.
    stacked = parameters.stack(params)
    return prompt_cache.CachedDecoder(config, stacked, memory, adapter, drawing, compute)


def _trunk(
    policy: Policy, loaded: checkpoint.Checkpoint, settings: Settings
) -> model.Trunk | prompt_cache.CachedTrunk | None:
    """The model's last states, which the reward reads."""
    if not settings.method.learns_reward:
        return None
    adapter = _reward_adapter(settings)
    return policy.trunk(adapter and loaded.params, adapter)


def _reward_adapter(settings: Settings) -> Adapter | None:
    return Adapter(settings.reward_rank, settings.layers) if settings.reward_rank else None


def _reward(
    hidden: model.Trunk | prompt_cache.CachedTrunk | None,
    loaded: checkpoint.Checkpoint,
    mesh: Mesh | None,
    settings: Settings,
) -> tuple[Head | None, PyTree | None]:
    """A head on the model's last states, with an adapter of its own, and its start: zero."""
    if hidden is None:
        return None, None
    config, key, adapter = loaded.config, jax.random.key(settings.seed), _reward_adapter(settings)
    head = Head(hidden, None if adapter else loaded.params)
    trunk = adapter and _placed(config, adapter.init(config, key), mesh)
    start = head.init(key, config.width, trunk=trunk)
    return head, start | {"weight": jnp.zeros_like(start["weight"])}


def _compute(mesh: Mesh | None, settings: Settings) -> ComputeOptions:
    pin = None if mesh is None else sharding.activations(mesh)
    dtype = None if settings.dtype is Dtype.FLOAT32 else jnp.dtype(settings.dtype.value)
    return ComputeOptions(dtype=dtype, parts=settings.accumulate, pin=pin)


def _placed(config: Config, tree: PyTree, mesh: Mesh | None) -> PyTree:
    return tree if mesh is None else sharding.put(config, tree, mesh)


def _pays(adapter: Adapter, config: Config, asked: model.PromptBatch, longest: int, limit: float):
    """Whether to cache the states of the prompts.

    Drawing t tokens from that cache takes t passes over the whole response, so only short
    responses gain by it.
    """
    if not adapter.below(config) or longest > min(SHORT, asked.tokens.shape[1]):
        return False
    return prompt_cache.memory_bytes(config, asked) <= limit * 2**30


def _parted(rows, settings: Settings):
    return batches.split(rows, settings.held_out, settings.seed) if len(rows) > 1 else (rows, [])
