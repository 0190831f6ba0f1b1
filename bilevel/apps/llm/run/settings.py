"""The options of `bilevel align` and `bilevel sft`: nothing here imports an array library."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bilevel import options
from bilevel.options import Bounds


class Method(enum.Enum):
    """Ways to align, by name."""

    IRL = "irl"
    AIHF = "aihf"
    AIHF_DPO = "aihf-dpo"
    AIHF_SELF_PLAY = "aihf-self-play"
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
        both = {Method.AIHF_DPO, Method.AIHF_SELF_PLAY}
        demos = {Method.IRL, Method.AIHF, Method.SPIN, Method.SFT} | both
        pairs = {Method.RLHF, Method.DPO, Method.IPO} | both
        return self in demos, self in pairs


class Schedule(enum.Enum):
    """How a step size goes on after the warm-up, by name."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class Dtype(enum.Enum):
    """Formats of activations, by name."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class PolicyStep(enum.Enum):
    """How a policy moves on a reward, by name."""

    LEAVE_ONE_OUT = "leave-one-out"
    PPO = "ppo"
    GRPO = "grpo"
    SQUARED_ADVANTAGE = "squared-advantage"


# --- groups of options -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Folders(options.Settings):
    """Files."""

    model: Path
    """Hugging Face folder, GGUF file, or name of a model on the hub."""
    out: Path
    """New folder for the checkpoint and the report."""


@dataclass(frozen=True, kw_only=True)
class Feedback(Folders):
    """Files."""

    demos: Path | None = None
    """JSONL or parquet file of demonstrations."""
    prefs: Path | None = None
    """JSONL or parquet file of preferences."""


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Folders):
    """Files."""

    demos: Path
    """JSONL or parquet file of demonstrations."""


@dataclass(frozen=True, kw_only=True)
class Alignment(options.Settings):
    """Method."""

    method: Method = Method.AIHF
    """How to align."""
    beta: Annotated[float, Bounds(above=0)] = 0.1
    """Weight of the divergence from the model given."""
    divergence: Annotated[float | None, Bounds(above=0, infinite=True)] = None
    """KL divergence from the model given, in nats a response, at which the run is ended. When
    absent, 100, or 2 for each token that may be drawn where that is more; no limit for sft."""


@dataclass(frozen=True, kw_only=True)
class PolicySteps(options.Settings):
    """Policy step (irl, aihf, rlhf)."""

    policy_step: PolicyStep = PolicyStep.LEAVE_ONE_OUT
    """How the policy moves on the reward."""
    samples: Annotated[int, Bounds(least=2)] = 4
    """Responses drawn to a prompt."""
    new: Annotated[int | None, Bounds(least=1)] = None
    """Longest response to draw, in tokens; the longest of the data when absent."""
    epochs: Annotated[int | None, Bounds(least=1)] = None
    """Passes over the responses drawn (ppo 4, grpo 1, squared-advantage 2 when absent)."""
    clip: Annotated[float | None, Bounds(above=0)] = None
    """Range of the probability ratio around 1 (ppo, grpo; 0.2 when absent)."""
    target_kl: Annotated[float | None, Bounds(above=0)] = None
    """Hold the divergence at so many nats a response by adapting beta; fixed beta when absent."""
    policy_updates: Annotated[int | None, Bounds(least=1)] = None
    """Policy steps on a fixed reward (rlhf, and in rounds); as many as steps when absent."""
    finish: Annotated[int | None, Bounds(least=1)] = None
    """Policy steps on the final reward, after the single loop (irl, aihf); none when absent."""
    finish_beta: Annotated[float | None, Bounds(above=0)] = None
    """beta of these last steps. The single loop brings the policy as far as the demonstrators; a
    smaller beta brings it further."""


@dataclass(frozen=True, kw_only=True)
class RewardFit(options.Settings):
    """Reward (irl, aihf, rlhf)."""

    reward_rate: Annotated[float, Bounds(least=0)] = 1e-3
    """Step size of the reward (Adam)."""
    reward_rank: Annotated[int, Bounds(least=0)] = 8
    """Rank of the reward's own LoRA adapter. With 0 the reward is a linear head on the model, which
    tells responses apart but hardly which of them suits the prompt."""


@dataclass(frozen=True, kw_only=True)
class Phases(options.Settings):
    """Rounds (irl, aihf, spin, aihf-self-play)."""

    rounds: Annotated[int | None, Bounds(least=1)] = None
    """Number of rounds. When absent, irl and aihf move reward and policy in a single loop, and
    self-play takes one round."""
    replay: bool = False
    """Learn on the responses of earlier rounds, too."""
    redraw: bool = False
    """Draw responses anew in every reward step, not once a round (irl, aihf)."""
    restart_reward: bool = False
    """Begin every round with the initial reward (irl, aihf)."""


@dataclass(frozen=True, kw_only=True)
class Training(options.Settings):
    """Training."""

    steps: Annotated[int, Bounds(least=1)] = 200
    """Updates of the reward (irl, aihf, rlhf) or of the policy; in each round where there are
    several."""
    batch: Annotated[int, Bounds(least=1)] = 8
    """Rows of each kind of feedback, and prompts to answer, a step."""
    rate: Annotated[float, Bounds(least=0)] = 1e-4
    """Step size of the policy (AdamW)."""
    schedule: Schedule = Schedule.CONSTANT
    """How step sizes go on after the warm-up; linear and cosine reach 0 at the end of the run, and
    of every round."""
    warmup: Annotated[int, Bounds(least=0)] = 0
    """Steps in which the step sizes rise from 0."""
    weight_decay: Annotated[float, Bounds(least=0)] = 0.0
    """Weight decay of the policy; biases and scales of norms are left out."""
    max_grad_norm: Annotated[float | None, Bounds(above=0)] = None
    """Longest gradient; a longer one is scaled down to it. Not limited when absent."""
    rank: Annotated[int, Bounds(least=0)] = 8
    """Rank of the LoRA adapter; 0 trains all parameters."""
    scale: Annotated[float, Bounds(above=0)] = 2.0
    """Factor of the LoRA adapter: alpha / rank in the words of PEFT."""
    targets: tuple[str, ...] = ()
    """Kernels to adapt: query, key, value, output, gate, up, down; repeatable. All when absent."""
    layers: Annotated[int | None, Bounds(least=1)] = None
    """Adapt only so many of the last layers; all when absent."""
    held_out: Annotated[float, Bounds(least=0, most=0.9)] = 0.1
    """Share of the feedback to evaluate on."""
    skip_bad: bool = False
    """Leave out rows that cannot be used, and tell how many, instead of refusing the file."""
    log_every: Annotated[int, Bounds(least=1)] = 10
    """Evaluate and save every so many steps."""
    seed: Annotated[int, Bounds(least=0)] = 0
    """Decides split, order and draws."""
    tensorboard: Path | None = None
    """Folder for TensorBoard, to which what is logged is written, too."""

    def __post_init__(self):
        super().__post_init__()
        if self.warmup >= self.steps:
            raise ValueError(
                f"warmup is {self.warmup}, and the run has {self.steps} steps; fewer are needed."
            )
        if self.rank == 0 and self.targets:
            raise ValueError(
                "--targets has no effect with --rank 0, which trains all parameters. Leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class Compute(options.Settings):
    """Memory and devices."""

    length: Annotated[int | None, Bounds(least=2)] = None
    """Tokens of a prompt and its response, more are refused; the model's limit when absent."""
    accumulate: Annotated[int, Bounds(least=1)] = 1
    """Parts in which a step works through its rows, one after another, to save memory: gradient
    accumulation. The result is that of all rows at once, up to rounding."""
    dtype: Dtype = Dtype.FLOAT32
    """Format of the activations. Parameters, sums and AdamW stay in float32."""


@dataclass(frozen=True, kw_only=True)
class Memory(Compute):
    """Memory and devices."""

    memory: Annotated[float, Bounds(least=0, infinite=True)] = 2.0
    """GiB that the prompt cache may take; 0 turns it off. The cache holds the states of the frozen
    layers. It is used if it fits, only the last layers are adapted, and responses are short."""
    mesh: Annotated[tuple[int, int] | None, Bounds(least=1)] = None
    """Devices as DATA,MODEL: rows are split over DATA, heads and vocabulary over MODEL, the weights
    over both. One device when absent."""


@dataclass(frozen=True, kw_only=True)
class Tuning(Training, Compute):
    """What training on demonstrations alone reads."""


# --- the commands ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings(Alignment, Training, PolicySteps, RewardFit, Phases, Memory):
    """How to align."""

    def __post_init__(self):
        super().__post_init__()
        for names, (reads, others) in self._readers().items():
            for option in options.options(type(self)):
                if option.name in names and not reads and self._set(option):
                    raise ValueError(
                        f"{option.flag} has no effect here: it is for {others}. Leave it out."
                    )
        if (self.finish is None) != (self.finish_beta is None):
            raise ValueError(
                "--finish says how many last steps there are and --finish-beta what their beta is; "
                "give both or neither."
            )
        for moves in (self.policy_updates, self.finish):
            if moves is not None and self.warmup >= moves:
                raise ValueError(
                    f"warmup is {self.warmup}, and the policy makes {moves} steps on a fixed "
                    "reward; fewer are needed."
                )

    def _readers(self) -> dict[tuple[str, ...], tuple[bool, str]]:
        """Options that only some settings read: whether these do, and which do."""
        bilevel = self.method in (Method.IRL, Method.AIHF)
        plays = self.method in (Method.SPIN, Method.AIHF_SELF_PLAY)
        in_rounds, step = self.rounds is not None, self.policy_step
        clips = step in (PolicyStep.PPO, PolicyStep.GRPO)
        return {
            ("beta", "divergence"): (self.method is not Method.SFT, "all methods but sft"),
            ("policy_step", "target_kl"): (self.method.learns_reward, "irl, aihf and rlhf"),
            ("clip",): (clips, "--policy-step ppo and grpo"),
            ("epochs",): (
                clips or step is PolicyStep.SQUARED_ADVANTAGE,
                "--policy-step ppo, grpo and squared-advantage",
            ),
            ("rounds",): (bilevel or plays, "irl, aihf, spin and aihf-self-play"),
            ("replay",): (in_rounds, "methods with --rounds"),
            ("finish", "finish_beta"): (
                bilevel and not in_rounds,
                "irl and aihf without --rounds",
            ),
            ("redraw", "restart_reward"): (in_rounds and bilevel, "irl and aihf with --rounds"),
            ("policy_updates",): (
                self.method is Method.RLHF or (in_rounds and bilevel),
                "rlhf, and irl and aihf with --rounds",
            ),
        }

    def _set(self, option: options.Option) -> bool:
        return getattr(self, option.name) != option.default


@dataclass(frozen=True, kw_only=True)
class Align(Feedback, Settings):
    """Align a language model with demonstrations, preferences or both.

    An interrupted run resumes when you give the same command again.
    """


@dataclass(frozen=True, kw_only=True)
class SFT(Demonstrations, Training, Memory):
    """Fine-tune a language model on demonstrations.

    Demonstrations are packed side by side into rows of LENGTH tokens (of the longest one when
    absent), which leaves little padding; they do not attend to each other. BATCH is how many of
    them a step learns from, on average. If only the last LAYERS are adapted and responses are
    short, the prompt cache is used instead.
    """

    def as_align(self) -> Align:
        """The same, as settings of `bilevel align`."""
        return Align(method=Method.SFT, **vars(self))
