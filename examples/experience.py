"""Learn from feedback that never ends: you choose the better of two, and the policy follows.

    python examples/experience.py           # a simulated user, whose taste turns half-way
    python examples/experience.py --ask     # you: type 1 or 2, or an empty line to stop

With the simulated user it should print a policy that likes tea, and after the turn one that likes
coffee; nothing but two tables and a few means is kept.
"""

import argparse
import itertools

import numpy as np

from bilevel.apps.rl.experience import Asked, Feedback, Kind, Loop, SimulatedUser

DRINKS = ("tea", "coffee", "water", "juice")


def shown(loop: Loop) -> str:
    shares = zip(DRINKS, np.asarray(loop.policy[0]), strict=True)
    return "  ".join(f"{name} {share:.2f}" for name, share in shares)


def simulated(loop: Loop) -> None:
    user = SimulatedUser(np.array([[3.0, 0.0, 1.0, 0.0]]))
    for taste in ([3.0, 0.0, 1.0, 0.0], [0.0, 3.0, 1.0, 0.0]):
        user.utilities = np.array([taste])
        for asked in itertools.islice(loop, 400):
            metrics = loop.tell(user(asked))
        print(
            f"after {loop.time} answers: {shown(loop)}, satisfaction {metrics['satisfaction']:.2f}"
        )


def answer(asked: Asked) -> Feedback | None:
    first, second = (DRINKS[one] for one in asked.responses)
    while (typed := input(f"1 {first}, or 2 {second}? ").strip()) not in ("1", "2", ""):
        print("Type 1 or 2, or nothing to stop.")
    return Feedback(*asked, Kind.PREFERENCE, float(typed == "1")) if typed else None


def main(ask: bool) -> None:
    loop = Loop(prompts=1, responses=len(DRINKS))
    if not ask:
        return simulated(loop)
    for asked in loop:
        told = answer(asked)
        if told is None:
            return None
        loop.tell(told)
        print(shown(loop))
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ask", action="store_true")
    main(parser.parse_args().ask)
