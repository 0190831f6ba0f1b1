"""The options of `bilevel irl`: nothing here imports an array library."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from bilevel import options
from bilevel.options import Bounds


@dataclass(frozen=True, kw_only=True)
class IRL(options.Settings):
    """Find the reward that demonstrations maximise, in a finite MDP or an environment by name."""

    demos: Path
    """An .npz file: states, actions, and walls (a grid) or kernel; or, of an environment,
    observations and actions; more in docs/apps/rl.md."""
    env: str | None = None
    """An environment: CartPole-v1, Pendulum-v1, Pendulum-continuous, or with the extra rl hopper or
    one of gymnax. Numbers that are absent are others for Pendulum-continuous and hopper."""
    steps: Annotated[int | None, Bounds(least=1, most=1_000_000)] = None
    """Updates of the reward; 2000, of an environment 400, when absent."""
    step_size: Annotated[float | None, Bounds(above=0)] = None
    """Step size of Adam on the reward; 0.1, of an environment 0.001, from where it falls to zero,
    when absent."""
    decay: Annotated[float | None, Bounds(least=0)] = None
    """Weight of half the squared reward parameters: more for fewer demonstrations; 0.1, of an
    environment 0, when absent."""
    held_out: Annotated[float, Bounds(least=0, most=0.9)] = 0.2
    """Share of the demonstrations, the last ones, that are only judged by."""
    discount: Annotated[float | None, Bounds(least=0, most=0.9999)] = None
    """Discount of later rewards; 0.95, of an environment 0.97, when absent."""
    temperature: Annotated[float | None, Bounds(above=0)] = None
    """Weight of the entropy of the policy; 1, of an environment 0.5, when absent."""
    slip: Annotated[float, Bounds(least=0, most=1)] = 0.0
    """Of a grid: probability that another move is made."""
    state_only: bool = False
    """Learn a reward of the state, which serves better elsewhere, instead of state and action."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Of an environment: decides the networks and all draws."""
    checkpoint: Path | None = None
    """Folder for the state of the run; a run that finds its own there goes on from it."""
    save: Path | None = None
    """Write the reward and the policy into this .npz file."""
    out: Path = Path("bilevel-irl.html")
    """Where the report goes."""

    def numbers(self) -> "Numbers":
        """The numbers whose defaults depend on what the demonstrations are from."""
        absent = FINITE if self.env is None else OF_ENV.get(self.env, NETWORKS)
        given = {name: getattr(self, name) for name in Numbers._fields}
        return absent._replace(**{k: v for k, v in given.items() if v is not None})

    def filled(self) -> "IRL":
        """The options with these numbers in place."""
        return dataclasses.replace(self, **self.numbers()._asdict())


class Numbers(NamedTuple):
    """Options of `IRL` under the same names."""

    steps: int
    step_size: float
    decay: float
    discount: float
    temperature: float


FINITE = Numbers(2000, 0.1, 0.1, 0.95, 1.0)
NETWORKS = Numbers(400, 1e-3, 0.0, 0.97, 0.5)
OF_ENV = {
    "Pendulum-continuous": Numbers(100, 1e-3, 0.0, 0.97, 0.1),
    "hopper": Numbers(140, 2e-4, 0.0, 0.99, 0.03),
}
LOWER = {"hopper": {"fits": 192}}  # fields of the lower level


@dataclass(frozen=True, kw_only=True)
class Experts(options.Settings):
    """Write demonstrations of an expert: linear-quadratic control, value iteration, or search."""

    env: str = "CartPole-v1"
    """CartPole-v1, Pendulum-v1, Pendulum-continuous, or hopper, which takes minutes."""
    episodes: Annotated[int, Bounds(least=1, most=100_000)] = 10
    """How many demonstrations."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides where they start."""
    out: Path = Path("demos.npz")
    """The .npz file to write, for `bilevel irl --demos`."""
