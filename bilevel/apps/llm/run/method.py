"""The way to align that settings name."""

from dataclasses import replace

import jax
import optax

from bilevel import schedules
from bilevel.apps.llm.methods import direct, rlhf, sft
from bilevel.apps.llm.methods.aihf import AIHF, IRL, Finish, Rounds
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
from bilevel.apps.llm.run.settings import Method, PolicyStep, Schedule, Settings, Training
from bilevel.schedules import AbstractSchedule
from bilevel.updates import AbstractUpdate, Clipped, FromOptax


def method(settings: Settings) -> AbstractAlignment:
    """The object that the name stands for."""
    update = policy_update(settings, settings.steps)
    upper = reward_update(settings)
    step, rows = policy_step(settings), settings.batch
    joint = {"x_update": upper, "decay": 1e-3}
    joint |= {"rounds": rounds(settings), "finish": finish(settings)}
    play = {"rounds": settings.rounds or 1, "replay": settings.replay, "rows": rows}
    match settings.method:
        case Method.IRL:
            return IRL(step, **joint)
        case Method.AIHF:
            return AIHF(step, **joint)
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


def policy_step(settings: Settings, calls: int | None = None) -> AbstractPolicyStep:
    """How the policy moves on a reward, in a phase of so many calls; the main one when absent."""
    calls = calls or settings.policy_updates or settings.steps
    given = {"epochs": settings.epochs, "clip": settings.clip}
    given = {name: value for name, value in given.items() if value is not None}
    given["samples"] = settings.samples
    kinds = {
        PolicyStep.LEAVE_ONE_OUT: LeaveOneOut,
        PolicyStep.PPO: PPO,
        PolicyStep.GRPO: GRPO,
        PolicyStep.SQUARED_ADVANTAGE: SquaredAdvantage,
    }
    step = kinds[settings.policy_step](**given)
    moves = getattr(step, "epochs", 1)
    step = replace(step, update=policy_update(settings, calls, moves))
    return step if settings.target_kl is None else Adaptive(step, settings.target_kl)


# --- updates -----------------------------------------------------------------------------------


def policy_update(settings: Training, steps: int, moves: int = 1) -> AbstractUpdate:
    """AdamW of the policy, which moves so many times in a step."""
    rate = step_size(settings, settings.rate, steps, moves)
    return _clipped(adamw, settings, rate, weight_decay=settings.weight_decay)


def reward_update(settings: Settings) -> AbstractUpdate:
    """Adam of the reward, whose weight decay is part of its loss."""
    rate = step_size(settings, settings.reward_rate, settings.steps)
    return _clipped(optax.adam, settings, rate)


def step_size(settings: Training, rate: float, steps: int, moves: int = 1) -> AbstractSchedule:
    """The step size as a function of the moves made."""
    warmup, rest = settings.warmup * moves, (steps - settings.warmup) * moves
    after = {
        Schedule.CONSTANT: schedules.Constant(rate),
        Schedule.LINEAR: schedules.Linear(rate, -rate / rest),
        Schedule.COSINE: schedules.Cosine(rate, rest),
    }[settings.schedule]
    return schedules.WarmUp(after, warmup) if warmup else after


def _clipped(factory, settings: Training, rate: AbstractSchedule, **numbers) -> AbstractUpdate:
    update = FromOptax(factory, rate, **numbers)
    return update if settings.max_grad_norm is None else Clipped(update, settings.max_grad_norm)


def adamw(rate, weight_decay) -> optax.GradientTransformation:
    """AdamW that does not shrink biases and scales of norms."""
    return optax.adamw(rate, weight_decay=weight_decay, mask=_decaying)


def _decaying(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: path[-1].key not in ("bias", "scale"), params
    )


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


def finish(settings: Settings) -> Finish | None:
    """Last steps on the final reward, where they are asked for."""
    if settings.finish is None or settings.finish_beta is None:
        return None
    return Finish(settings.finish, settings.finish_beta, policy_step(settings, settings.finish))
