"""The options of `bilevel irl`: nothing here imports an array library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.options import Bounds


@dataclass(frozen=True, kw_only=True)
class IRL(options.Settings):
    """Find the reward that demonstrations in a gridworld or another finite MDP maximise."""

    demos: Path
    """An .npz file: states, actions, and walls (a grid) or kernel; more in docs/apps/rl.md."""
    steps: Annotated[int, Bounds(least=1, most=1_000_000)] = 2000
    """Updates of the reward."""
    step_size: Annotated[float, Bounds(above=0)] = 0.1
    """Step size of Adam on the reward."""
    decay: Annotated[float, Bounds(least=0)] = 0.1
    """Weight of half the squared reward: more for fewer demonstrations."""
    held_out: Annotated[float, Bounds(least=0, most=0.9)] = 0.2
    """Share of the demonstrations, the last ones, that are only judged by."""
    discount: Annotated[float, Bounds(least=0, most=0.9999)] = 0.95
    """Discount of later rewards."""
    temperature: Annotated[float, Bounds(above=0)] = 1.0
    """Weight of the entropy of the policy."""
    slip: Annotated[float, Bounds(least=0, most=1)] = 0.0
    """Of a grid: probability that another move is made."""
    state_only: bool = False
    """Learn a reward of the state, which serves better elsewhere, instead of state and action."""
    save: Path | None = None
    """Write the reward and the policy into this .npz file."""
    out: Path = Path("bilevel-irl.html")
    """Where the report goes."""
