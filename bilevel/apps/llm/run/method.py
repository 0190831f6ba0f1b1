"""The way to align that settings name."""

import optax

from bilevel.apps.llm.methods import direct, rlhf, sft
from bilevel.apps.llm.methods.aihf import AIHF, IRL, Rounds
from bilevel.apps.llm.methods.align import AbstractAlignment
from bilevel.apps.llm.methods.self_play import SPIN, SelfPlayAIHF
from bilevel.apps.llm.policy_steps.adaptive import Adaptive
from bilevel.apps.llm.policy_steps.policy_step import (
    GRPO,
    AbstractPolicyStep,
    LeaveOneOut,
    SquaredAdvantage,
)
from bilevel.apps.llm.policy_steps.ppo import PPO
from bilevel.apps.llm.run.settings import Method, PolicyStep, Settings
from bilevel.updates import FromOptax


def method(settings: Settings) -> AbstractAlignment:
    """The object that the name stands for."""
    update = FromOptax(optax.adam, settings.rate)
    upper = FromOptax(optax.adam, settings.reward_rate)
    step, rows = policy_step(settings), settings.batch
    play = {"rounds": settings.rounds or 1, "replay": settings.replay, "rows": rows}
    match settings.method:
        case Method.IRL:
            return IRL(step, x_update=upper, decay=1e-3, rounds=rounds(settings))
        case Method.AIHF:
            return AIHF(step, x_update=upper, decay=1e-3, rounds=rounds(settings))
        case Method.AIHF_DPO:
            return direct.AIHFDPO(update, rows=rows)
        case Method.AIHF_SELF_PLAY:
            return SelfPlayAIHF(update, **play)
        case Method.RLHF:
            learner = rlhf.RewardModel(upper, 1e-3)
            return rlhf.RLHF(step, settings.policy_updates or settings.steps, learner)
        case Method.DPO:
            return direct.DPO(update, rows=rows)
        case Method.IPO:
            return direct.IPO(settings.beta, False, update, rows=rows)
        case Method.SPIN:
            return SPIN(update, settings.beta, **play)
        case Method.SFT:
            return sft.SFT(update)


def policy_step(settings: Settings) -> AbstractPolicyStep:
    """How the policy moves on a reward."""
    given = {"epochs": settings.epochs, "clip": settings.clip}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {"update": FromOptax(optax.adam, settings.rate), "samples": settings.samples}
    kinds = {
        PolicyStep.LEAVE_ONE_OUT: LeaveOneOut,
        PolicyStep.PPO: PPO,
        PolicyStep.GRPO: GRPO,
        PolicyStep.SQUARED_ADVANTAGE: SquaredAdvantage,
    }
    step = kinds[settings.policy_step](**given)
    return step if settings.target_kl is None else Adaptive(step, settings.target_kl)


def rounds(settings: Settings) -> Rounds | None:
    """Whole phases, where they are asked for."""
    if settings.rounds is None:
        return None
    return Rounds(
        settings.rounds,
        settings.policy_updates or settings.steps,
        stored=not settings.redraw,
        replay=settings.replay,
        fresh=settings.restart_reward,
    )
