"""Gridworlds: free cells are states, and the four moves may slip."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from bilevel.apps.rl.mdp import MDP

MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # up, right, down, left
ARROWS = "↑→↓←"


class Grid(NamedTuple):
    """A gridworld and where its states are."""

    mdp: MDP
    cells: Int[np.ndarray, "states 2"]  # row and column of each state
    walls: Bool[np.ndarray, "rows columns"]


def grid(
    walls: Bool[np.ndarray, "rows columns"],
    *,
    start: int | None = None,
    slip: float = 0.0,
    discount: float = 0.9,
    temperature: float = 1.0,
) -> Grid:
    """Free cells in reading order; a move into a wall or out of the grid stays.

    Args:
        start: the first state; uniform over all when absent.
        slip: the probability that a uniformly drawn move is made in place of the chosen one.

    Raises:
        ValueError: no cell is free, or a number is out of its range.
    """
    walls = np.asarray(walls, bool)
    if walls.ndim != 2 or walls.all():
        raise ValueError("walls must be a table of rows and columns with at least one free cell.")
    if not 0 <= slip <= 1:
        raise ValueError(f"slip is {slip}; a probability is needed.")
    cells = np.argwhere(~walls)
    number = {tuple(cell): i for i, cell in enumerate(cells.tolist())}
    n = len(cells)
    sure = np.zeros((n, 4, n))
    for i, cell in enumerate(cells):
        for a, move in enumerate(MOVES):
            sure[i, a, number.get(tuple((cell + move).tolist()), i)] = 1
    kernel = (1 - slip) * sure + slip * sure.mean(axis=1, keepdims=True)
    first = np.full(n, 1 / n) if start is None else np.eye(n)[start]
    mdp = MDP(jnp.asarray(kernel, float), jnp.asarray(first, float), discount, temperature)
    return Grid(mdp, cells, walls)


def distances(world: Grid, goal: int) -> Float[np.ndarray, " states"]:
    """Moves to a goal from each state; infinite where there is no way."""
    steps = np.asarray(world.mdp.kernel).max(axis=1) > 0
    found = np.full(len(steps), np.inf)
    found[goal] = 0
    for _ in range(len(steps)):
        found = np.minimum(found, 1 + np.where(steps, found[None], np.inf).min(axis=1))
    return found


def ending(mdp: MDP, goal: int) -> MDP:
    """The goal made absorbing: every action stays there."""
    kernel = mdp.kernel.at[goal].set(jnp.eye(mdp.shape[0], dtype=mdp.kernel.dtype)[goal][None])
    return MDP(kernel, mdp.start, mdp.discount, mdp.temperature)
