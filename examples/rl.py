"""The reward behind demonstrations in a gridworld, used again where the ground is slippery.

An expert walks round a pool to a goal. From 50 of its walks the reward is learned, up to shaping;
it should print that the policy of the learned reward reaches nearly the expert's value where moves
slip, and that the policy cloned from the same walks falls behind.

    python examples/rl.py
    python examples/rl.py --demos demos.npz    # also writes a file for `bilevel irl --demos`
    python examples/rl.py --save reward.png
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.apps.rl import compare, irl, mdp, pictures
from bilevel.apps.rl.grid import grid

WALLS = np.zeros((6, 7), bool)
WALLS[1:4, 3] = True
GOAL, POOL = (0, 6), [(4, 3), (4, 4), (5, 3)]


def main(demos: Path | None, save: Path | None) -> None:
    world = grid(WALLS, discount=0.95, temperature=0.3)
    place = {tuple(cell): i for i, cell in enumerate(world.cells.tolist())}
    each = jnp.zeros(len(place)).at[place[GOAL]].set(1.0)
    for cell in POOL:
        each = each.at[place[cell]].set(-1.0)
    true = jnp.broadcast_to(each[:, None], world.mdp.shape)
    expert = mdp.solve(world.mdp, true)
    walks = mdp.rollouts(world.mdp, expert.policy, jax.random.key(0), 50, 30)

    reward = lambda x: x[:, None] + jnp.zeros((1, 4))  # noqa: E731  (of the state)
    problem = irl.problem(world.mdp, reward, irl.of(world.mdp, walks), decay=1e-3)
    method = bl.methods.TTSA(x_update=0.05)
    x0, y0 = jnp.zeros(len(place)), jnp.zeros(world.mdp.shape)
    result = bl.solve(problem, method, x0, y0, steps=2000, progress=False)
    learned = reward(result.x)

    icy = grid(WALLS, slip=0.4, discount=0.95, temperature=0.3).mdp
    seen = jnp.zeros(world.mdp.shape).at[walks.states[:, :-1], walks.actions].add(1.0)
    policies = {
        "best": mdp.solve(icy, true).policy,
        "learned reward": mdp.solve(icy, learned).policy,
        "cloned policy": compare.clone(irl.Visits(seen, icy.start)),
        "uniform": jnp.full(icy.shape, 0.25),
    }
    print("value where moves slip")
    for name, policy in policies.items():
        print(f"  {name:15} {mdp.total(icy, mdp.evaluate(icy, true, policy)):.3f}")
    if demos:
        held = {"states": walks.states, "actions": walks.actions}
        np.savez(demos, walls=WALLS, reward=np.asarray(true), **held)
    if save:
        shaped = compare.reshaped(world.mdp, true, learned)
        tables = {"learned reward, reshaped": np.asarray(shaped), "true reward": np.asarray(true)}
        policy = np.asarray(mdp.solve(world.mdp, learned).policy)
        figure = pictures.heat_maps(tables, policy, world)
        figure.patch.set(facecolor="white", alpha=1)
        figure.savefig(save, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--demos", type=Path)
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    main(given.demos, given.save)
