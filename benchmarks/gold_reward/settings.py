"""What the results were made with; loads no array library."""

from typing import NamedTuple

from benchmarks.harness import RESULTS

FILE = RESULTS / "gold_reward.json"
SEEDS = (31, 32, 33)  # of the tables; docs/gold-reward.md says what was looked at before
TUNED = 100  # settings are chosen on the feedback and prompts of this seed
PAIRS = 200
SWEEP, SWEPT = (0, 50, 100, 400), ("AIHF", "RLHF", "DPO")
SWEPT_GOLD = "sentiment"  # the gold reward of the sweep, and of what stands in the next line
MORE_SEEDS, MORE_WAYS = (41, 42, 43, 44, 45, 46), ("SFT", "IRL")  # declared before they were run
SMOL = RESULTS / "gold_reward_smollm2.json"
SMOL_SEEDS, SMOL_WAYS = (1, 2, 3), (("SFT", "IRL"), ("DPO", "AIHF"))  # in this order
CAPS = (1.0, 2.0, 3.0, 4.0)  # nats
KL = CAPS[-1]  # among settings that end nearer to the base, the one with the best gold reward


class Point(NamedTuple):
    """What a checkpoint reached, on responses to prompts that no feedback is about."""

    step: int
    seconds: float  # of the processor, without compilation and without this measurement
    gold: float
    kl: float  # nats from the base
    accuracy: float  # share of held-out pairs that the reward (or log-ratio) orders as gold does
    won: float | None  # share of prompts answered better than by SFT; a tie is half
