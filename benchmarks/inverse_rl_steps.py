"""What inverse RL with networks costs: environment steps, learner steps, and seeds by vmap.

A learner step plays 1024 moves, fits Q to them four times over, and plays eight whole episodes for
the hypergradient. The fit is matrix products at a core's full speed: `vmap` saves a tenth of it,
and two fifths of the episodes, whose steps are small.
"""

import statistics

import jax

import bilevel as bl
from benchmarks.harness import Row, compare, interleave, main
from bilevel.apps.rl.neural import irl, rollouts
from bilevel.apps.rl.neural.actions import uniform
from bilevel.apps.rl.neural.environments import CartPole, Environment, Pendulum
from bilevel.apps.rl.neural.experts import expert, record
from bilevel.apps.rl.neural.rewards import Network
from bilevel.apps.rl.neural.soft_q import SoftQ

SEEDS, STEPS, COPIES, LENGTH = 5, 5, 256, 64


def of(name: str, env: Environment, repeats: int) -> list[Row]:
    reward = Network(len(env.scale))
    agent = SoftQ(env, reward)
    problem = irl.problem(agent)
    method = irl.method(STEPS)
    data = irl.data(record(env, expert(env), jax.random.key(7), 10)[0], agent)
    keys = jax.random.split(jax.random.key(0), SEEDS)

    def random(key, seen):
        return uniform(env.actions, key)

    def learn(key):
        state = method.init(problem, reward.start(key), agent.start(key))
        return bl.run(problem, method, state, data=data, key=key, steps=STEPS)[0]

    places = rollouts.start(env, keys[0], COPIES)
    play = jax.jit(lambda key: rollouts.rollout(env, random, key, places, LENGTH))
    one, together = jax.jit(learn), jax.jit(jax.vmap(learn))
    cases = {
        "play": lambda: play(keys[0]),
        "one": lambda: one(keys[0]),
        "together": lambda: together(keys),
        "loop": lambda: [one(key) for key in keys],
    }
    times = interleave(cases, repeats)
    played, learned = (statistics.median(times[case]) for case in ("play", "one"))
    return [
        Row(f"{name}: {COPIES} copies, random actions", COPIES * LENGTH / played, unit="steps/s"),
        Row(f"{name}: learner, one seed", STEPS / learned, unit="steps/s"),
        compare(
            f"{name}: {STEPS} steps of {SEEDS} seeds by vmap, against a loop",
            times["together"],
            times["loop"],
            scale=1e3,
            unit="ms",
            target=0.5,
        ),
    ]


def measure(repeats: int = 7) -> list[Row]:
    return [*of("CartPole", CartPole(), repeats), *of("Pendulum", Pendulum(), repeats)]


if __name__ == "__main__":
    main("inverse_rl_steps", measure)
