"""Demonstrations in an environment: an .npz file, looked at from all sides before it is used."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.apps.rl.demos import finite_arrays
from bilevel.apps.rl.neural.actions import Box
from bilevel.apps.rl.neural.environments import Environment
from bilevel.apps.rl.neural.experts import Demos
from bilevel.files import write_arrays

KNOWN = "observations, actions, lengths, ended, returns"
APART = 1e-3  # of the scale, between an observation and the one that the dynamics foretell


def write(path: Path, demos: Demos, returns: np.ndarray) -> None:
    write_arrays(
        path,
        {**{k: np.asarray(v) for k, v in demos._asdict().items()}, "returns": np.asarray(returns)},
    )


def read(path: Path, env: Environment, name: str) -> tuple[Demos, np.ndarray | None]:
    """Read whole episodes and, where known, their true returns.

    Arrays of the file: `observations (n, t + 1, d)`, with what the last action led to; `actions
    (n, t)`, whole numbers from 0, or `(n, t, m)`, numbers from −1 to 1. May be there: `lengths
    (n,)`, actions of each, all t when absent; `ended (n,)`, 1 for those that ended for good, when
    absent those shorter than the horizon; `returns (n,)`.

    Raises:
        ValueError: something is wrong with the file, in one sentence.
    """
    held = finite_arrays(path, KNOWN)
    for key in ("observations", "actions"):
        if key not in held:
            raise ValueError(f"{path} has no array {key}; it holds {', '.join(held)}.")
    seen, actions = held["observations"], held["actions"]
    d = len(env.scale)
    one = (env.actions.size,) if isinstance(env.actions, Box) else ()
    if (
        actions.ndim != 2 + len(one)
        or actions.shape[2:] != one
        or seen.shape != (len(actions), actions.shape[1] + 1, d)
    ):
        wanted = ", ".join(["n", "t", *map(str, one)])
        raise ValueError(
            f"{path}: observations have shape {seen.shape} and actions {actions.shape}; {name} "
            f"needs (n, t + 1, {d}) and ({wanted}), with what the last action led to."
        )
    n, longest = actions.shape[:2]
    if n == 0 or not 0 < longest <= env.horizon:
        raise ValueError(
            f"{path} has {n} demonstrations of {longest} actions; at least 1 of 1 to {env.horizon} "
            "is needed."
        )
    lengths = _whole(path, "lengths", held.get("lengths", np.full(n, longest)), (n,), 1, longest)
    inside = np.arange(longest)[None] < lengths[:, None]
    actions = _moves(path, np.where(inside.reshape(n, longest, *[1] * len(one)), actions, 0), env)
    short = lengths < env.horizon
    ended = _whole(path, "ended", held.get("ended", short), (n,), 0, 1).astype(bool)
    if (short & ~ended).any():
        i = int(np.argmax(short & ~ended))
        raise ValueError(
            f"{path}: demonstration {i} stops after {lengths[i]} of {env.horizon} steps and has "
            "not ended; whole episodes are needed."
        )
    demos = Demos(*(jnp.asarray(a) for a in (seen.astype(float), actions, lengths, ended)))
    returns = held.get("returns")
    if returns is not None and returns.shape != (n,):
        raise ValueError(f"{path}: returns have shape {returns.shape}; ({n},) is needed.")
    if hasattr(env, "place"):
        returns = _replayed(path, env, name, demos, inside)
    return demos, returns


def _moves(path, actions: np.ndarray, env: Environment) -> np.ndarray:
    if not isinstance(env.actions, Box):
        return _whole(path, "actions", actions, actions.shape, 0, env.actions - 1)
    outside = np.abs(actions) > 1
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"{path}: actions{list(place)} is {actions[place]}; a number from -1 to 1 is needed."
        )
    return actions.astype(float)


def _whole(path, name, array, shape, least, most) -> np.ndarray:
    if array.shape != shape:
        raise ValueError(f"{path}: {name} have shape {array.shape}; {shape} is needed.")
    bad = (array < least) | (array > most) | (array != np.floor(array))
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{path}: {name}{list(place)} is {array[place]}; a whole number from {least} to {most} "
            "is needed."
        )
    return array.astype(int)


def _replayed(path, env, name, demos: Demos, inside: np.ndarray) -> np.ndarray:
    """The true returns, by stepping the environment from every observation."""

    def one(seen, action):
        return env.step(jax.random.key(0), env.place(seen), action)[1]

    seen = jax.jit(jax.vmap(jax.vmap(one)))(demos.observations[:, :-1], demos.actions)
    scale = np.asarray(env.scale)
    apart = (np.abs(np.asarray(seen.observation - demos.observations[:, 1:])) / scale).max(axis=2)
    bad = inside & ~(apart <= APART)
    if bad.any():
        i, t = (int(k) for k in np.argwhere(bad)[0])
        raise ValueError(
            f"{path}: demonstration {i} does not move at step {t} as {name} does: are the "
            "demonstrations from another environment, or have they other actions?"
        )
    last = np.arange(len(inside)), np.asarray(demos.lengths) - 1
    wrong = np.asarray(seen.ended)[last] != np.asarray(demos.ended)
    if wrong.any():
        i = int(np.argmax(wrong))
        says, is_so = ("ended", "has not") if demos.ended[i] else ("goes on", "has ended")
        raise ValueError(f"{path}: demonstration {i} {says} where {name} {is_so}.")
    return np.where(inside, np.asarray(seen.reward), 0).sum(axis=1)
