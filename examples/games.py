"""A security game, a toll road, and a linear bilevel program, each to its known answer.

It should print a coverage of 0.6 and 0.4 with the value −1.8, a toll of 3, and −29.2 with a big-M
of 0.5 found out.
"""

import numpy as np

from bilevel import mip
from bilevel.apps import games


def security() -> None:
    attacker = np.array([[-1.0, 4.0], [-2.0, 3.0]])  # covered, uncovered
    defender = np.array([[0.0, -5.0], [0.0, -3.0]])
    found = games.commit(games.Payoffs(attacker, defender))
    print(f"guard with odds {found.coverage.round(3)}, value {found.value:.3f}")


def toll_road() -> None:
    """One road costs 2 and a toll, the other 5; the leader's loss is −toll · flow."""
    products = np.zeros((3, 3))
    products[0, 1] = products[1, 0] = 1
    program = mip.Program(
        cost=np.zeros(3),
        share=-1.0,
        rows=np.array([[0.0, 1.0, 1.0]]),
        row_lower=np.ones(1),
        row_upper=np.ones(1),
        upper=np.array([10, mip.INF, mip.INF]),
        follower=np.array([False, True, True]),
        follower_rows=np.array([True]),
        follower_cost=np.array([0.0, 2.0, 5.0]),
        follower_hessian=products,
        names=("toll", "toll road", "free road"),
    )
    answer = mip.solve(program)
    print(f"toll {answer.z[0]:.3f}, revenue {-answer.value:.3f}, proved gap {answer.gap:.0e}")


def linear() -> None:
    program = mip.Program(
        cost=np.array([-8.0, -4, 4, -40, -4, 0, 0, 0]),
        rows=np.array(
            [[0, 0, -1, 1, 1, 1, 0, 0], [2, 0, -1, 2, -0.5, 0, 1, 0], [0, 2, 2, -1, -0.5, 0, 0, 1]]
        ),
        row_lower=np.ones(3),
        row_upper=np.ones(3),
        follower=np.arange(8) >= 2,
        follower_rows=np.ones(3, bool),
        follower_cost=np.array([0.0, 0, 1, 1, 2, 0, 0, 0]),
    )
    answer = mip.solve(program, big_m=0.5)
    print(f"{answer}; a big-M of 0.5 {'fails' if answer.big_m_fails else 'suffices'}")


if __name__ == "__main__":
    security()
    toll_road()
    linear()
