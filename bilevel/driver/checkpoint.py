"""Runs that survive a kill: states on disk, written whole or not at all."""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel import sharding
from bilevel.data import Feed
from bilevel.methods.base import AbstractMethod, State
from bilevel.problem import Problem


class Checkpoint(NamedTuple):
    """Where and how often a run saves its state.

    A run that finds a checkpoint of the same problem, method and data in the folder goes on from
    it, and ends in the same state, bit for bit, as a run that was never interrupted.

    Attributes:
        folder: made if it does not exist.
        seconds: at least this long between two saves; the last state is always saved.
        keep: how many states stay on disk.
    """

    folder: str | Path
    seconds: float = 30.0
    keep: int = 2


class CheckpointMismatch(ValueError):
    """The folder holds a checkpoint of another problem, method or data."""


class Saved(NamedTuple):
    """What came back from disk."""

    tree: Any  # like the template
    rows: list[dict[str, float]]  # the history so far


class Saver:
    """Saves and restores through `orbax.checkpoint`; a failed save is a note, not an end."""

    def __init__(self, checkpoint: Checkpoint | str | Path, fingerprint: dict[str, str]):
        import orbax.checkpoint as ocp

        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        self._ocp, self._checkpoint, self._fingerprint = ocp, checkpoint, fingerprint
        self._saved_at, self._saved_step, self._failed = time.monotonic(), -1, False
        self.notes: list[str] = []
        self._folder = folder = Path(checkpoint.folder).expanduser().resolve()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink(missing_ok=True)  # another process may have been faster
        except OSError as error:
            raise ValueError(
                f"checkpoint folder {checkpoint.folder} cannot be written: {error.strerror}. "
                "Choose another, or leave checkpoint out."
            ) from error
        options = ocp.CheckpointManagerOptions(
            max_to_keep=checkpoint.keep, enable_async_checkpointing=False
        )
        with _silence():
            self._manager = ocp.CheckpointManager(folder, options=options)

    def restore(self, template: Any) -> Saved | None:
        """The newest readable tree like the template, or `None` from an empty folder.

        Raises:
            CheckpointMismatch: it is of another problem, method or data.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            json_only = self._ocp.args.Composite(about=self._ocp.args.JsonRestore())
            try:
                about = self._manager.restore(step, args=json_only)["about"]
            except (OSError, ValueError, KeyError) as error:
                self._unreadable(step, error)
                continue
            self._compare(about["fingerprint"])
            shapes = self._ocp.args.StandardRestore(_to_saved(template))
            try:
                found = self._manager.restore(step, args=self._ocp.args.Composite(state=shapes))
            except (OSError, ValueError, KeyError) as error:
                self._unreadable(step, error)
                continue
            self._saved_step = step
            return Saved(_from_saved(found["state"], template), json.loads(about["rows"]))
        if steps:
            raise CheckpointMismatch(
                f"the folder {self._checkpoint.folder} holds checkpoints that cannot be read "
                f"({self.notes[-1]}). Use another folder, or remove it."
            )
        return None

    def save(self, step: int, tree: Any, rows: list[dict], *, last: bool = False) -> None:
        """Save if it is time to, or if this is the last one."""
        due = last or time.monotonic() - self._saved_at >= self._checkpoint.seconds
        (due,) = sharding.any_process((due,))
        if not due or step == self._saved_step:
            return
        about = {"fingerprint": self._fingerprint, "rows": json.dumps(rows)}
        try:
            args = self._ocp.args.Composite(
                state=self._ocp.args.StandardSave(_to_saved(tree)),
                about=self._ocp.args.JsonSave(about),
            )
            with _silence():
                self._manager.save(step, args=args, force=True)
            self._saved_step = step
        except Exception as error:  # a full disk reaches us under many names
            told = str(error).strip().split("\n")[0]
            if not self._failed:
                self.notes.append(f"the checkpoint of step {step} could not be saved: {told}")
            self._failed = True
            for remains in self._folder.glob(f"{step}.*tmp*"):
                shutil.rmtree(remains, ignore_errors=True)
        self._saved_at = time.monotonic()

    def close(self) -> None:
        self._manager.close()

    def _unreadable(self, step: int, error: Exception) -> None:
        told = str(error).strip().split("\n")[0]
        self.notes.append(f"the checkpoint of step {step} could not be read and was passed: {told}")

    def _compare(self, saved: dict[str, str]) -> None:
        ours = self._fingerprint
        names = [name for name in ours if name != "code" or saved.get("jax") == ours["jax"]]
        for name in names:
            if name != "jax" and saved.get(name) != ours[name]:
                raise CheckpointMismatch(
                    f"the checkpoint in {self._checkpoint.folder} is of another {name}: saved "
                    f"{saved.get(name)}, now {ours[name]}. Use another folder, or remove it."
                )


def fingerprint(
    problem: Problem, method: AbstractMethod, state: State, feed: Feed, content: Any, key: Any
) -> dict[str, str]:
    """What must agree before a state is taken up again.

    The code of a step (losses, sets, updates, samplers), the numbers a problem carries, the data
    and the key; numbers of the method, such as step sizes, may change, and so may the devices.
    """
    shapes = jax.tree_util.tree_leaves_with_path(state)
    told = [f"{jax.tree_util.keystr(p)}:{leaf.dtype}{leaf.shape}" for p, leaf in shapes]

    def step(problem, method, state, feed):
        return method.step(problem, state, feed.batch(state.k))

    traced = jax.make_jaxpr(step)(*jax.tree.map(_anywhere, (problem, method, state, feed)))
    code = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))
    return {
        "jax": jax.__version__,
        "method": type(method).__name__,
        "state": _digest(*told),
        "problem": _digest(*map(_told, jax.tree.leaves(problem))),
        "code": _digest(code, *map(_told, traced.consts)),
        "data": _digest(str(feed.draws), *map(_told, jax.tree.leaves(content))),
        "key": _digest(_told(key)),
    }


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No log lines and no tracebacks of helper threads: what went wrong reaches us as an error."""
    loggers = [logging.getLogger(name) for name in ("absl", "orbax", "asyncio")]
    levels, hook = [logger.level for logger in loggers], threading.excepthook
    threading.excepthook = lambda _: None
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        threading.excepthook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def digest(tree: Any) -> str:
    """A few letters that differ where the numbers of a tree do; the same on any devices."""
    return _digest(*map(_told, jax.tree.leaves(tree)))


def _digest(*parts: str) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _told(leaf: Any) -> str:
    """An array's dtype, shape and content, the last as a checksum made where the array lies."""
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return f"{leaf.dtype}{leaf.shape}{np.asarray(_checksum(leaf))}"


def _anywhere(leaf: Any) -> jax.ShapeDtypeStruct:
    """An array's shape and dtype without the devices it lies on."""
    weak = getattr(leaf, "weak_type", False)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype, weak_type=weak)


@jax.jit
def _checksum(leaf: Array) -> Array:
    """Two sums modulo 2^32 of mixed bits and positions: in any order, so on any devices."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    width = min(leaf.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
    position = jnp.zeros_like(words)
    for axis, length in enumerate(words.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position = position * jnp.uint32(length) + along

    def mixed(bits, seed):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
        return bits ^ (bits >> 16) ^ jnp.uint32(seed)

    sums = [mixed(mixed(position, seed) + words, seed).sum(dtype=jnp.uint32) for seed in (1, 2)]
    return jnp.stack(sums)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_saved(tree: Any) -> dict[str, Any]:
    """The leaves by number; random keys as the integers behind them."""
    leaves = jax.tree.leaves(tree)
    plain = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]
    return {f"{i:04d}": leaf for i, leaf in enumerate(plain)}


def _from_saved(saved: dict[str, Any], template: Any) -> Any:
    leaves, treedef = jax.tree.flatten(template)
    plain = [saved[f"{i:04d}"] for i in range(len(leaves))]
    back = [
        jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if _is_key(old) else new
        for new, old in zip(plain, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, back)
