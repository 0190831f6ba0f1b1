"""A security game, a toll road, and a linear bilevel program, each to its known answer.

It should print a coverage of 0.6 and 0.4 with the value −1.8, a toll of 3, and −29.2 with a big-M
of 0.5 found out. `--save FILE` draws what the leaders of the first two see.
"""

import argparse

import numpy as np

from bilevel import mip
from bilevel.apps import games
from bilevel.report import figures

ATTACKER = np.array([[-1.0, 4.0], [-2.0, 3.0]])  # a row a target: covered, uncovered
DEFENDER = np.array([[0.0, -5.0], [0.0, -3.0]])


def security() -> None:
    found = games.commit(games.Payoffs(ATTACKER, DEFENDER))
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


def draw(file: str) -> None:
    """The leader's value at every choice, with the follower's answer to it."""
    with figures.style():
        figure = figures.new_figure(9.6, 2.8)
        guard, toll, firms = figure.subplots(1, 3)
        cover = np.linspace(0, 1, 401)
        covered = np.stack([cover, 1 - cover])[..., None]
        utilities = (
            np.concatenate([covered, 1 - covered], -1) * table[:, None]
            for table in (ATTACKER, DEFENDER)
        )
        attack, defence = (part.sum(-1) for part in utilities)
        guard.plot(cover, np.take_along_axis(defence, attack.argmax(0)[None], 0)[0])
        guard.plot(0.6, -1.8, "o", color=figures.series_color(1))
        guard.set_title("Security game"), guard.set_xlabel("coverage of target 1")
        tolls = np.linspace(0, 6, 401)
        toll.plot(tolls, np.where(tolls <= 3, tolls, 0))
        toll.plot(3, 3, "o", color=figures.series_color(1))
        toll.set_title("Toll road"), toll.set_xlabel("toll")
        made = np.linspace(0, 9, 401)
        firms.plot(made, made * (9 - made) / 2, label="the other answers")
        firms.plot(made, made * (9 - made - 3), "--", label="the other stays at 3")
        firms.plot(4.5, 4.5 * 4.5 / 2, "o", color=figures.series_color(1))
        firms.set_ylim(-4, 12), firms.legend()
        firms.set_title("Two firms"), firms.set_xlabel("quantity of the first")
        guard.set_ylabel("value of the leader")
        figure.savefig(file, dpi=110, facecolor="white")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", help="file of a picture")
    options = parser.parse_args()
    security()
    toll_road()
    linear()
    if options.save:
        draw(options.save)
