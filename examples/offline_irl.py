"""Offline inverse RL: a reward from a few walks, in dynamics that are known from records alone.

An expert walks round a pool to a goal; three of its walks are shown. How moves slip is known only
from these walks and from some by poor walkers. An ensemble of models is drawn from these records,
and the policy is learned in their mean with a penalty where they disagree. It should print that
this policy is worth more than the one cloned from the same walks; what the penalty adds is here
within the noise, as three walks show the way.

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
from bilevel.apps.rl.grid import grid

SHOWN, RECORDED, PENALTY = 3, 2, 20.0


def main(save: Path | None, seeds: int) -> None:
    world = grid(np.zeros((5, 5), bool), start=0, slip=0.1, discount=0.95, temperature=0.1)
    true = jnp.zeros(world.mdp.shape).at[4].set(1.0).at[jnp.array([2, 7])].set(-1.0)
    best = mdp.solve(world.mdp, true)
    poor = mdp.soft_policy(world.mdp, best.q / 20)
    reward = lambda x: x[:, None] + jnp.zeros((1, 4))  # noqa: E731  (of the state)
    method = bl.methods.TTSA(x_update=bl.updates.FromOptax(optax.adam, 0.05))

    def worth(policy):
        return float(world.mdp.start @ mdp.evaluate(world.mdp, true, policy, entropy=False))

    def learned(found, demos, penalty):
        problem = offline.problem(found, reward, irl.of(world.mdp, demos), penalty, decay=1e-2)
        x0, y0 = jnp.zeros(25), jnp.zeros(world.mdp.shape)
        result = bl.solve(problem, method, x0, y0, steps=400, progress=False, certify=False)
        return mdp.solve(found.mdp, offline.pessimistic(reward, found.doubt, penalty)(result.x))

    def drawn(seed):
        """The models of one draw of walks, and the policies to compare."""
        first, second = jax.random.split(jax.random.key(seed))
        demos = mdp.rollouts(world.mdp, best.policy, first, SHOWN, 30)
        mixed = mdp.rollouts(world.mdp, poor, second, RECORDED, 30)
        both = zip(demos, mixed, strict=True)
        found = offline.model(world.mdp, mdp.Rollouts(*map(jnp.concatenate, both)))
        seen = jnp.zeros(world.mdp.shape).at[demos.states[:, :-1], demos.actions].add(1.0)
        return found, {
            "with the penalty": learned(found, demos, PENALTY).policy,
            "without it": learned(found, demos, 0.0).policy,
            "cloned policy": compare.clone(irl.Visits(seen, world.mdp.start), 0.1),
            "poor walkers": poor,
            "expert": best.policy,
        }

    draws = [drawn(seed) for seed in range(seeds)]
    found, policies = draws[-1]
    print(f"discounted reward, mean of {seeds} draws")
    for name in policies:
        values = [worth(each[name]) for _, each in draws]
        print(f"  {name:17} {np.mean(values):7.3f} ± {np.std(values) / seeds**0.5:.3f}")
    if save:
        with_, without = policies["with the penalty"], policies["without it"]
        doubt = jnp.sum(without * found.doubt, axis=1, keepdims=True)
        each = {"doubt of the models": doubt}
        for name, policy in {"without": without, "with": with_}.items():
            steps = mdp.occupancy(world.mdp, policy).sum(axis=1, keepdims=True)
            each[f"steps {name} the penalty"] = jnp.log10(steps)
        tables = {k: np.asarray(v + jnp.zeros((1, 4))) for k, v in each.items()}
        figure = pictures.heat_maps(tables, np.asarray(without), world)
        figure.patch.set(facecolor="white", alpha=1)
        figure.savefig(save, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    given = parser.parse_args()
    main(given.save, given.seeds)
