"""Tolls that lead learning walkers round a meadow, in a gridworld.

Walkers of their own interest cross a meadow, the shortest way. A leader sets a toll on each of its
cells, at a price, and the walkers learn the best walk for the tolls: a Stackelberg game whose
follower is a soft optimal policy. It should print that tolls cut the steps on the meadow to less
than a fifth while walkers still reach the goal, and that the hypergradient agrees with differences.

    python examples/incentives.py
    python examples/incentives.py --save tolls.png
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel as bl
from bilevel.apps.rl import mdp, pictures, response
from bilevel.apps.rl.grid import ending, grid

MEADOW = np.zeros((6, 9), bool)
MEADOW[1:4, 3:6] = True


def main(save: Path | None) -> None:
    bare = grid(np.zeros(MEADOW.shape), start=18, discount=0.97, temperature=0.1)
    goal = 26  # the other end of row 2
    world = bare._replace(mdp=ending(bare.mdp, goal))
    walk = jnp.full(world.mdp.shape, -0.2).at[goal].set(0.0)  # each step costs walkers 0.2
    cells = np.flatnonzero(MEADOW)

    def reward(tolls):
        return walk - jnp.zeros(len(walk)).at[cells].set(tolls)[:, None]

    def trodden(policy):
        return jnp.sum(mdp.occupancy(world.mdp, policy)[cells])

    def loss(tolls, policy):
        return trodden(policy) + 0.1 * jnp.sum(tolls)

    problem = response.problem(world.mdp, reward, loss)
    problem = problem.replace(upper_set=bl.sets.Box(0.0, 1.0))
    method = bl.methods.TTSA(x_update=bl.updates.FromOptax(optax.adam, 0.01))
    x0, y0 = jnp.full(len(cells), 0.1), jnp.zeros(world.mdp.shape)
    result = bl.solve(problem, method, x0, y0, steps=600, progress=False)
    tolls = result.x

    def led(tolls):
        return mdp.solve(world.mdp, reward(tolls)).policy

    def there(policy):
        return (1 - world.mdp.discount) * jnp.sum(mdp.occupancy(world.mdp, policy)[goal])

    print("tolls              steps on the meadow   time at the goal   loss of the leader")
    for name, x in {"none": 0 * tolls, "learned": tolls, "1 everywhere": 0 * tolls + 1}.items():
        told = (float(fn) for fn in (trodden(led(x)), there(led(x)), loss(x, led(x))))
        print(f"{name:17} {next(told):20.3f} {next(told):18.3f} {next(told):20.3f}")
    print(f"cells with a toll above 0.05: {int(jnp.sum(tolls > 0.05))} of {len(cells)}")

    way = jax.random.normal(jax.random.key(0), tolls.shape)
    slope = way @ response.adjoint(world.mdp, reward, loss, tolls, led(tolls))
    ahead, behind = (loss(x, led(x)) for x in (tolls + 1e-5 * way, tolls - 1e-5 * way))
    off = abs(slope - (ahead - behind) / 2e-5) / abs(slope)
    print(f"hypergradient against differences: {float(off):.0e}")
    if save:
        flat = np.zeros(world.mdp.shape)
        tables = {"tolls": np.asarray(walk - reward(tolls))}
        policy = np.asarray(led(tolls))
        steps = np.array(mdp.occupancy(world.mdp, jnp.asarray(policy)).sum(axis=1))
        steps[goal] = 0
        tables["steps"] = steps[:, None] + flat
        figure = pictures.heat_maps(tables, policy, world)
        figure.patch.set(facecolor="white", alpha=1)
        figure.savefig(save, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", type=Path)
    main(parser.parse_args().save)
