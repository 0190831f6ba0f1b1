"""How to align, as the command line says it."""

import enum
from dataclasses import dataclass

import optax

from bilevel.apps.llm.methods import aihf, direct, rlhf, sft
from bilevel.apps.llm.methods.align import AbstractAlignment
from bilevel.apps.llm.methods.self_play import SPIN
from bilevel.apps.llm.policy_steps.policy_step import LeaveOneOut
from bilevel.updates import FromOptax


class Method(enum.Enum):
    """What can be asked for by name."""

    IRL = "irl"
    AIHF = "aihf"
    AIHF_DPO = "aihf-dpo"
    RLHF = "rlhf"
    DPO = "dpo"
    IPO = "ipo"
    SPIN = "spin"
    SFT = "sft"

    @property
    def learns_reward(self) -> bool:
        return self in (Method.IRL, Method.AIHF, Method.RLHF)

    @property
    def needs(self) -> tuple[bool, bool]:
        """Whether demonstrations, and preferences, are needed."""
        demos = {Method.IRL, Method.AIHF, Method.AIHF_DPO, Method.SPIN, Method.SFT}
        pairs = {Method.AIHF_DPO, Method.RLHF, Method.DPO, Method.IPO}
        return self in demos, self in pairs


@dataclass(frozen=True)
class Settings:
    """How to align.

    Args:
        steps: of the reward (IRL, AIHF) or of the policy.
        batch: rows of each kind of feedback, and prompts to answer, a step.
        samples: responses to a prompt, for methods that draw.
        beta: weight of the divergence from the model given.
        rate, reward_rate: Adam's step sizes.
        rank, layers: of the LoRA adapter; rank 0 trains all parameters, `layers` None adapts all.
        reward_rank: of the adapter that the reward has of its own, on the same layers; with 0 it is
            a linear head on the model as it is, which tells responses apart but hardly which of
            them suits the prompt.
        length: tokens of a prompt and its response; the model's own limit when absent.
        new: longest response to draw; that of the data when absent.
        held_out: share of the feedback to judge by.
        divergence: nats of KL at which the run is ended.
        memory: GiB that the prompt cache may take. The cache holds the states of the frozen layers,
            computed once before the run. It is used if it fits, only the last `layers` are adapted
            and responses are short. 0 turns it off.
        mesh: devices that rows, and heads with the vocabulary, are split over; the weights over
            both. One device when absent.
    """

    method: Method = Method.AIHF
    steps: int = 200
    batch: int = 8
    samples: int = 4
    beta: float = 0.1
    rate: float = 1e-4
    reward_rate: float = 1e-3
    rank: int = 8
    reward_rank: int = 8
    layers: int | None = None
    length: int | None = None
    new: int | None = None
    held_out: float = 0.1
    divergence: float = 100.0
    memory: float = 2.0
    mesh: tuple[int, int] | None = None
    log_every: int = 10
    seed: int = 0


def method(settings: Settings) -> AbstractAlignment:
    """The object that a name stands for."""
    update = FromOptax(optax.adam, settings.rate)
    upper = FromOptax(optax.adam, settings.reward_rate)
    step = LeaveOneOut(update, samples=settings.samples)
    rows = settings.batch
    match settings.method:
        case Method.IRL:
            return aihf.IRL(step, x_update=upper, decay=1e-3)
        case Method.AIHF:
            return aihf.AIHF(step, x_update=upper, decay=1e-3)
        case Method.AIHF_DPO:
            return direct.AIHFDPO(update, rows=rows)
        case Method.RLHF:
            return rlhf.RLHF(step, settings.steps, rlhf.RewardModel(upper, 1e-3))
        case Method.DPO:
            return direct.DPO(update, rows=rows)
        case Method.IPO:
            return direct.IPO(settings.beta, False, update, rows=rows)
        case Method.SPIN:
            return SPIN(update, rows=rows)
        case Method.SFT:
            return sft.SFT(update)
