"""Demonstrations that users bring: an .npz file, looked at from all sides before it is used."""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bilevel.apps.rl.grid import Grid, grid
from bilevel.apps.rl.mdp import MDP, Rollouts
from bilevel.files import read_arrays

STATES = 2_000  # matrices of states by states are held
KNOWN = "states, actions, lengths, walls, kernel, start, features, reward"


class Demos(NamedTuple):
    """What a file holds."""

    mdp: MDP
    demos: Rollouts
    lengths: np.ndarray
    features: np.ndarray | None
    reward: np.ndarray | None  # the true one, to compare with
    grid: Grid | None


def read(
    path: Path, *, discount: float = 0.95, temperature: float = 1.0, slip: float = 0.0
) -> Demos:
    """Read demonstrations and the MDP they are from.

    Arrays of the file: `states (n, t + 1)` and `actions (n, t)`, whole numbers from 0, with the
    state where the last action led; `lengths (n,)`, actions of each, all t when absent; and either
    `walls (rows, columns)`, 1 where no state is, or `kernel (states, actions, states)`. May be
    there: `start (states,)`, `features (states, actions, d)` of which the reward is linear,
    `reward (states, actions)`, the true one.

    Raises:
        ValueError: something is wrong with the file, in one sentence.
    """
    held = finite_arrays(path, KNOWN)
    for name in ("states", "actions"):
        if name not in held:
            raise ValueError(f"{path} has no array {name}; it holds {', '.join(held) or 'none'}.")
    if ("walls" in held) == ("kernel" in held):
        raise ValueError(f"{path} needs either walls, of a grid, or a kernel.")
    world = None
    if "walls" in held:
        walls = held["walls"]
        if walls.ndim != 2 or not np.isin(walls, (0, 1)).all() or walls.all():
            raise ValueError(f"{path}: walls must be rows and columns of 0 (free) and 1 (wall).")
        _few(path, int((walls == 0).sum()))
        world = grid(walls.astype(bool), slip=slip, discount=discount, temperature=temperature)
        kernel = np.asarray(world.mdp.kernel)
    else:
        kernel = _kernel(path, held["kernel"])
    n, m = kernel.shape[:2]
    states, actions, lengths = _trajectories(path, held, n, m)
    _possible(path, kernel, states, actions, lengths)
    start = _start(path, held, states, n)
    mdp = MDP(jnp.asarray(kernel, float), jnp.asarray(start, float), discount, temperature)
    features = _table(path, held, "features", (n, m), more=1)
    reward = _table(path, held, "reward", (n, m))
    demos = Rollouts(jnp.asarray(states), jnp.asarray(actions))
    return Demos(mdp, demos, lengths, features, reward, world and world._replace(mdp=mdp))


def finite_arrays(path: Path, known: str) -> dict[str, np.ndarray]:
    """The arrays of a file, all numbers finite, all names among the known ones."""
    found = read_arrays(path)
    for name in found:
        if name not in known.split(", "):
            raise ValueError(f"{path} has an unknown array {name!r}; known are {known}.")
    return {name: _numeric(path, name, array) for name, array in found.items()}


def _numeric(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{path}: {name}{list(place)} is {array[place]}; it must be finite.")
    return array


def _few(path: Path, states: int) -> None:
    if states > STATES:
        raise ValueError(f"{path} has {states} states; at most {STATES} can be solved exactly.")


def _kernel(path: Path, kernel: np.ndarray) -> np.ndarray:
    if kernel.ndim != 3 or kernel.shape[0] != kernel.shape[2] or 0 in kernel.shape:
        raise ValueError(
            f"{path}: kernel has shape {kernel.shape}; (states, actions, states) is needed."
        )
    _few(path, len(kernel))
    off = np.abs(kernel.sum(axis=2) - 1)
    if kernel.min() < 0 or off.max() > 1e-6:
        s, a = np.unravel_index(np.argmax(off), off.shape)
        raise ValueError(
            f"{path}: kernel[{s}, {a}] is no law: its sum is {kernel[s, a].sum():g}, its least "
            f"entry {kernel[s, a].min():g}."
        )
    return kernel / kernel.sum(axis=2, keepdims=True)


def _trajectories(path, held, n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    states, actions = held["states"], held["actions"]
    if actions.ndim != 2 or states.shape != (len(actions), actions.shape[1] + 1):
        raise ValueError(
            f"{path}: states have shape {states.shape} and actions {actions.shape}; (n, t + 1) and "
            "(n, t) are needed, with the state where the last action led."
        )
    count, longest = actions.shape
    if count == 0 or longest == 0:
        raise ValueError(f"{path} has {count} demonstrations of {longest} actions; 1 is the least.")
    lengths = held.get("lengths", np.full(count, longest))
    if lengths.shape != (count,):
        raise ValueError(f"{path}: lengths have shape {lengths.shape}; ({count},) is needed.")
    for name, array, most in (
        ("lengths", lengths, longest + 1), ("states", states, n), ("actions", actions, m),
    ):  # fmt: skip
        least = 1 if name == "lengths" else 0
        width = {"states": longest + 1, "actions": longest}.get(name)
        ends = lengths[:, None] + (name == "states")
        read = True if width is None else np.arange(width)[None] < ends
        bad = read & ((array < least) | (array >= most) | (array != np.floor(array)))
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"{path}: {name}{list(place)} is {array[place]}; a whole number from {least} to "
                f"{most - 1} is needed."
            )
    lengths = lengths.astype(int)
    inside = np.arange(longest + 1)[None] <= lengths[:, None]
    states = np.where(inside, states, 0).astype(int)
    return states, np.where(inside[:, 1:], actions, 0).astype(int), lengths


def _possible(path, kernel, states, actions, lengths) -> None:
    chance = kernel[states[:, :-1], actions, states[:, 1:]]
    bad = (chance <= 0) & (np.arange(actions.shape[1])[None] < lengths[:, None])
    if bad.any():
        i, t = (int(one) for one in np.argwhere(bad)[0])
        raise ValueError(
            f"{path}: demonstration {i} goes from state {states[i, t]} by action {actions[i, t]} "
            f"to state {states[i, t + 1]}, which the kernel calls impossible: are they from "
            "another environment? (Of a grid that slips, give --slip.)"
        )


def _start(path, held, states, n: int) -> np.ndarray:
    if "start" not in held:
        return np.bincount(states[:, 0], minlength=n) / len(states)
    start = held["start"]
    if start.shape != (n,) or start.min() < 0 or abs(start.sum() - 1) > 1e-6:
        raise ValueError(f"{path}: start must be {n} probabilities of sum 1.")
    return start / start.sum()


def _table(path, held, name: str, shape: tuple[int, int], more: int = 0) -> np.ndarray | None:
    if name not in held:
        return None
    if held[name].shape[:2] != shape or held[name].ndim != 2 + more:
        needed = f"{shape}" if not more else f"({shape[0]}, {shape[1]}, d)"
        raise ValueError(f"{path}: {name} has shape {held[name].shape}; {needed} is needed.")
    return held[name].astype(float)
