"""An episode as a strip of pictures: where the cart and the pole, or the pendulum, are."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from bilevel.apps.rl.neural.environments import CartPole, Environment, Pendulum
from bilevel.apps.rl.neural.rollouts import Act, episodes
from bilevel.report import figures
from bilevel.typing import RandomKey

ROWS, COLUMNS = 2, 6


class Scene(NamedTuple):
    """What to draw of one observation, in a window of its own."""

    rod: Float[np.ndarray, "2 2"]  # its ends: a column each for x and y
    cart: bool
    left: float
    right: float
    low: float
    high: float


def scene(env: Environment, seen: Float[np.ndarray, " d"]) -> Scene | None:
    """The scene of an observation; `None` for an environment that is not drawn."""
    if isinstance(env, CartPole):
        place, _, angle, _ = seen
        tip = place + 2 * float(env.length) * np.sin(angle), 2 * float(env.length) * np.cos(angle)
        high = 2.2 * float(env.length) + 0.3
        return Scene(np.array([(place, 0.0), tip]), True, -2.6, 2.6, -0.4, high)
    if isinstance(env, Pendulum):
        return Scene(np.array([(0.0, 0.0), (seen[1], seen[0])]), False, -1.3, 1.3, -1.3, 1.3)
    return None


def one_episode(env: Environment, act: Act, key: RandomKey) -> Float[np.ndarray, "t d"]:
    """What is seen in an episode, with what the last action led to."""
    steps, alive = jax.jit(lambda key: episodes(env, act, key, 1))(key)
    last = int(alive[:, 0].sum())
    return np.concatenate([steps.before[:last, 0], steps.after[last - 1 : last, 0]])


def strip(env: Environment, seen: Float[np.ndarray, "t d"]) -> Any | None:
    """Twelve moments of an episode, the first and the last among them; `None` if not drawn."""
    if scene(env, seen[0]) is None:
        return None
    with figures.style():
        figure = figures.new_figure(9.6, 3.4)
        times = np.linspace(0, len(seen) - 1, ROWS * COLUMNS).round().astype(int)
        for axes, t in zip(figure.subplots(ROWS, COLUMNS).flat, times, strict=True):
            drawn = scene(env, seen[t])
            assert drawn is not None
            if drawn.cart:
                axes.plot((-2.4, 2.4), (0, 0), color=figures.LINE, linewidth=1.2)
                axes.plot(*drawn.rod[:1].T, "s", color=figures.QUIET, markersize=9)
            axes.plot(*drawn.rod.T, color=figures.series_color(0), linewidth=3)
            if not drawn.cart:
                axes.plot(*drawn.rod[:1].T, "o", color=figures.QUIET, markersize=6)
            axes.set(xlim=(drawn.left, drawn.right), ylim=(drawn.low, drawn.high))
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.set_title(f"step {t}", fontweight="normal", color=figures.QUIET)
            axes.grid(False)
            axes.spines[:].set_visible(False)
        return figure
