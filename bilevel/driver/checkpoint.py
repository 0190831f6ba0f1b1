"""Runs that survive a kill: states on disk, written whole or not at all."""

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import sharding
from bilevel.driver.fingerprint import changed, difference, is_key


class Checkpoint(NamedTuple):
    """Where and how often a run saves its state.

    A run that finds a checkpoint of the same problem, method, start, key and data in the folder
    goes on from it, and ends in the same state, bit for bit, as a run that was never interrupted.

    Attributes:
        folder: of this machine, or of a file system that it sees; made if it does not exist.
        seconds: at least this long between two saves; the last state is always saved.
        keep: how many states stay on disk.
    """

    folder: str | Path
    seconds: float = 30.0
    keep: int = 2


class CheckpointMismatch(ValueError):
    """The folder holds a checkpoint of another problem, method, start, key or data."""


class Saved(NamedTuple):
    """What came back from disk."""

    tree: Any  # like the template
    rows: list[dict[str, float]]  # the history so far


class Saver:
    """Saves and restores through `orbax.checkpoint`; a failed save is a note, not an end."""

    def __init__(
        self, checkpoint: Checkpoint, fingerprint: dict[str, str], settings: dict[str, str]
    ):
        import orbax.checkpoint as ocp

        self._ocp, self._checkpoint = ocp, checkpoint
        self._fingerprint, self._settings = fingerprint, settings
        self._damaged: set[int] = set()
        self._saved_at, self._saved_step, self._failed = time.monotonic(), -1, False
        self.notes: list[str] = []
        self._folder = folder = Path(checkpoint.folder).expanduser().resolve()
        self._probe()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=checkpoint.keep, enable_async_checkpointing=False
        )
        with _silence():
            self._manager = ocp.CheckpointManager(folder, options=options)

    def _probe(self) -> None:
        """Write a small array into the folder and read it again.

        Raises:
            ValueError: it does not come back.
        """
        name, numbers = self._checkpoint.folder, {"0": jnp.arange(3)}
        mend = "Choose another, or leave checkpoint out."
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / ".writable"
            probe.touch()
            probe.unlink(missing_ok=True)  # another process may have been faster
        except OSError as error:
            raise ValueError(
                f"checkpoint folder {name} cannot be written: {error.strerror}. {mend}"
            ) from error
        if jax.process_count() > 1:
            return
        probe = self._folder / f".probe-{os.getpid()}"
        try:
            with _silence(), self._ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(probe, numbers, force=True)
                checkpointer.wait_until_finished()
                found = checkpointer.restore(probe, numbers)
            same = np.array_equal(found["0"], numbers["0"])
        except Exception as error:  # the file layer fails under many names
            told = str(error).strip().split("\n")[0][:200]
            raise ValueError(
                f"checkpoint folder {name} does not give back what is written there ({told}). "
                f"Names with [ ] or \\ do that. {mend}"
            ) from error
        finally:
            shutil.rmtree(probe, ignore_errors=True)
        if not same:
            raise ValueError(f"checkpoint folder {name} gives back other numbers. {mend}")

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
            told = changed(about.get("settings", {}), self._settings)
            shapes = self._ocp.args.StandardRestore(_to_saved(template))
            try:
                found = self._manager.restore(step, args=self._ocp.args.Composite(state=shapes))
            except (OSError, ValueError, KeyError) as error:
                self._unreadable(step, error)
                continue
            self._saved_step = step
            self.notes += [told] if told else []
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
        about = {
            "fingerprint": self._fingerprint,
            "settings": self._settings,
            "rows": json.dumps(rows),
        }
        try:
            if step in self._damaged:
                self._remove(step)
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
        told = str(error).strip().splitlines()[0][:200]
        self.notes.append(f"the checkpoint of step {step} could not be read and was passed: {told}")
        self._damaged.add(step)

    def _remove(self, step: int) -> None:
        """Take a damaged step away, so that it can be written again."""
        if jax.process_index() == 0:
            shutil.rmtree(self._folder / str(step), ignore_errors=True)
        with _silence():
            self._manager.reload()
        self._damaged.discard(step)

    def _compare(self, saved: dict[str, str]) -> None:
        if told := difference(saved, self._fingerprint):
            raise CheckpointMismatch(
                f"the checkpoint in {self._checkpoint.folder} is of {told}. Use another folder, or "
                "remove it."
            )


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


def _to_saved(tree: Any) -> dict[str, Any]:
    """The leaves by number; random keys as the integers behind them."""
    leaves = jax.tree.leaves(tree)
    plain = [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in leaves]
    return {f"{i:04d}": leaf for i, leaf in enumerate(plain)}


def _from_saved(saved: dict[str, Any], template: Any) -> Any:
    leaves, treedef = jax.tree.flatten(template)
    plain = [saved[f"{i:04d}"] for i in range(len(leaves))]
    back = [
        jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if is_key(old) else new
        for new, old in zip(plain, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, back)
