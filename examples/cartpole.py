"""A reward for balancing a pole, from ten episodes of an expert.

A network of the state is the reward above, the soft policy of a network Q follows it below, and
neither sees the true reward, 1 for each step until the fall. It should print a return of some 20
for random actions, and near the expert's 500 for inverse RL.

    python examples/cartpole.py
    python examples/cartpole.py --save cartpole.png
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

import bilevel as bl
from bilevel.apps.rl.neural import irl, pictures
from bilevel.apps.rl.neural.environments import CartPole
from bilevel.apps.rl.neural.experts import balance, record
from bilevel.apps.rl.neural.rewards import Network
from bilevel.apps.rl.neural.rollouts import episodes, returns
from bilevel.apps.rl.neural.soft_q import SoftQ, settling


def main(save: Path | None, steps: int) -> None:
    env = CartPole()
    demos, worth = record(env, balance(env), jax.random.key(7), 10)
    reward = Network(len(env.scale))
    policy = SoftQ(env, reward, update=settling(steps))
    problem = irl.problem(policy)
    x0, y0 = reward.start(jax.random.key(1)), policy.start(jax.random.key(2))
    result = bl.solve(
        problem,
        irl.method(steps),
        x0,
        y0,
        data=irl.data(demos, policy),
        steps=steps,
        certify=False,
    )

    def played(act):
        return float(returns(*episodes(env, act, jax.random.key(3), 20)).mean())

    random = played(lambda key, seen: jax.random.randint(key, (), 0, 2))
    print(f"random actions {random:6.1f}")
    print(f"inverse RL     {played(policy.act(result.y)):6.1f}")
    print(f"expert         {float(jnp.mean(worth)):6.1f}")
    if save:
        over = pictures.plane(env, demos)
        learned = pictures.reward(policy, result.x, result.y, over)
        figure = pictures.planes({"learned reward": learned}, over)
        figure.patch.set(facecolor="white", alpha=1)
        figure.savefig(save, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    main(given.save, given.steps)
