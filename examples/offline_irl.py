"""Offline inverse RL: why an ensemble's doubt should cost something, and when it need not.

An expert walks round a swamp to a goal; three of its walks are shown. How moves end is known only
from records of careless walkers, and those who stepped into the swamp never came back to tell. So
the models believe that it is ground like any other, and the straight way looks best. An ensemble
of models is drawn from the records; it disagrees about moves that nobody has made. The policy is
learned in their mean, with a penalty on this doubt and without.

It should print that without the penalty the policy drowns if the reward says no more than "goal" or
"ground", and that with a reward of each cell the penalty hardly matters: such a reward falls where
the policy goes and the expert does not, which keeps the policy out of the swamp.

    python examples/offline_irl.py
    python examples/offline_irl.py --save offline.png
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel as bl
from bilevel.apps.rl import compare, irl, mdp, offline, pictures
from bilevel.apps.rl.grid import MOVES, Grid, grid

ROWS, COLUMNS, START, GOAL = 5, 7, 14, 20
SWAMP = np.array([r * COLUMNS + c for r in (1, 2, 3) for c in (2, 3, 4)])
SHOWN, RECORDED, LENGTH, PENALTY = 3, 400, 30, 100.0
WAYS = ("with the penalty", "without it")


def meadow() -> Grid:
    """A field with a swamp in its middle, which nobody leaves and which looks like ground."""
    world = grid(np.zeros((ROWS, COLUMNS), bool), start=START, slip=0.1, discount=0.95)
    n = ROWS * COLUMNS
    kernel = world.mdp.kernel.at[SWAMP].set(jnp.eye(n)[SWAMP][:, None])
    return world._replace(mdp=mdp.MDP(kernel, world.mdp.start, 0.95, 0.1))


def alike(world: Grid, records: mdp.Rollouts) -> np.ndarray:
    """One count for each move, as if every cell were like the cells of the records."""
    states, actions = map(np.asarray, records)
    cells, ways = world.cells, np.array([*MOVES, (0, 0)])
    shift = cells[states[:, 1:]] - cells[states[:, :-1]]
    made = (shift[..., None, :] == ways).all(axis=-1)  # (walks, moves, ways)
    share = np.array([made[actions == a].mean(axis=0) for a in range(4)])
    to = np.clip(cells[:, None] + ways, 0, (ROWS - 1, COLUMNS - 1)) @ np.array([COLUMNS, 1])
    return np.einsum("aw,swt->sat", share, np.eye(len(cells))[to])


def main(save: Path | None, seeds: int) -> None:
    world, solve = meadow(), jax.jit(mdp.solve)
    walk = jax.jit(mdp.rollouts, static_argnums=(3, 4))
    n = world.mdp.shape[0]
    true = jnp.zeros(world.mdp.shape).at[GOAL].set(1.0)
    best = solve(world.mdp, true)
    dry = jnp.asarray(np.setdiff1d(np.arange(n), SWAMP))
    anywhere = mdp.MDP(world.mdp.kernel, jnp.zeros(n).at[dry].set(1 / len(dry)), 0.95, 0.1)
    kinds = {
        "of two kinds of cell": jnp.eye(2)[jnp.zeros(n, int).at[GOAL].set(1)],
        "of each cell": jnp.eye(n),
    }
    method = bl.methods.TTSA(x_update=bl.updates.FromOptax(optax.adam, 0.05))

    def learned(found, demos, kind, penalty):
        reward = irl.linear(jnp.repeat(kind[:, None], 4, axis=1))
        problem = offline.problem(found, reward, irl.of(world.mdp, demos), penalty, decay=1e-2)
        start = jnp.zeros(kind.shape[1]), jnp.zeros(world.mdp.shape)
        result = bl.solve(problem, method, *start, steps=400, progress=False, certify=False)
        return solve(found.mdp, offline.pessimistic(reward, found.doubt, penalty)(result.x))

    def drawn(seed):
        """The models of one draw of walks, and the policies to compare."""
        first, second = jax.random.split(jax.random.key(seed))
        demos = walk(world.mdp, best.policy, first, SHOWN, LENGTH)
        walks = walk(anywhere, jnp.full(world.mdp.shape, 0.25), second, RECORDED, LENGTH)
        back = ~np.isin(walks.states, SWAMP).any(axis=1)
        records = mdp.Rollouts(*(part[back] for part in walks))
        found = offline.model(world.mdp, records, prior=alike(world, records))
        seen = jnp.zeros(world.mdp.shape).at[demos.states[:, :-1], demos.actions].add(1.0)
        policies = {
            f"reward {name}, {way}": learned(found, demos, kind, penalty).policy
            for name, kind in kinds.items()
            for way, penalty in zip(WAYS, (PENALTY, 0.0), strict=True)
        }
        policies["cloned policy"] = compare.clone(irl.Visits(seen, world.mdp.start), 0.1)
        return found, policies | {"expert": best.policy}

    def worth(policy):
        return float(world.mdp.start @ mdp.evaluate(world.mdp, true, policy, entropy=False))

    draws = [drawn(seed) for seed in range(seeds)]
    found, policies = draws[-1]
    print(f"discounted reward, mean of {seeds} draws")
    for name in policies:
        values = [worth(each[name]) for _, each in draws]
        print(f"  {name:45} {np.mean(values):7.3f} ± {np.std(values) / seeds**0.5:.3f}")
    if save:
        first = next(iter(kinds))
        with_, without = (policies[f"reward {first}, {way}"] for way in WAYS)
        doubt = "doubt of the models"
        maps, laws = {doubt: jnp.sum(without * found.doubt, axis=1)}, {doubt: without}
        for way, policy in zip(WAYS[::-1], (without, with_), strict=True):
            name = f"steps {way}"
            steps = mdp.occupancy(found.mdp, policy).sum(axis=1)
            maps[name], laws[name] = jnp.log10(jnp.maximum(steps, 1e-3)), policy
        tables = {k: np.tile(np.asarray(v)[:, None], 4) for k, v in maps.items()}
        figure = pictures.heat_maps(tables, {k: np.asarray(v) for k, v in laws.items()}, world)
        figure.patch.set(facecolor="white", alpha=1)
        figure.savefig(save, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    given = parser.parse_args()
    main(given.save, given.seeds)
