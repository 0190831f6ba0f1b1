"""A knapsack in two stages, and its answers by listing everything."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Knapsack(NamedTuple):
    """Items may be taken now, or later when profits are known.

    Now item i gives `now_i`; later `profit_i − ξ_i fall_i`. At most `deviations` profits fall, ξ in
    {0, 1}. An item is taken once, and all of them together weigh at most `room`.
    """

    now: Float[np.ndarray, " items"]
    profit: Float[np.ndarray, " items"]
    fall: Float[np.ndarray, " items"]
    weight: Float[np.ndarray, " items"]
    room: float
    deviations: int


def instance(seed: int, items: int = 10, deviations: int = 3) -> Knapsack:
    """An instance at random: later profits are higher, and fall below those of now."""
    rng = np.random.default_rng(seed)
    profit, weight = rng.integers(20, 100, items), rng.integers(5, 40, items)
    now, fall = profit * rng.uniform(0.6, 0.95, items), profit * rng.uniform(0.3, 1.0, items)
    return Knapsack(
        now, profit.astype(float), fall, weight.astype(float), weight.sum() / 2, deviations
    )


def subsets(n: int) -> Float[np.ndarray, "subsets items"]:
    """All vectors of zeros and ones."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=n)))


def first_stages(k: Knapsack) -> Float[np.ndarray, "choices items"]:
    """All x that fit."""
    every = subsets(len(k.now))
    return every[every @ k.weight <= k.room]


def scenarios(k: Knapsack) -> Float[np.ndarray, "scenarios items"]:
    """All ξ with exactly as many falls as allowed; fewer are never worse."""
    n = len(k.now)
    chosen = itertools.combinations(range(n), min(k.deviations, n))
    return np.array([np.isin(np.arange(n), one).astype(float) for one in chosen])


def second_stage(k: Knapsack, x, xi) -> float:
    """The best value of what is taken later, for one x and one ξ."""
    free = np.flatnonzero(x == 0)
    every = subsets(len(free))
    fits = every[every @ k.weight[free] <= k.room - x @ k.weight]
    return float((fits @ (k.profit - xi * k.fall)[free]).max())


def worst_case(k: Knapsack, x) -> float:
    """The value of x in its worst scenario, by listing scenarios and second stages."""
    free = np.flatnonzero(x == 0)
    every = subsets(len(free))
    fits = every[every @ k.weight[free] <= k.room - x @ k.weight]
    later = (k.profit - scenarios(k) * k.fall)[:, free]
    return float(k.now @ x + (fits @ later.T).max(axis=0).min())


def enumerate_all(k: Knapsack) -> tuple[Float[np.ndarray, " items"], float]:
    """The best x and its value; listing everything takes seconds at ten items."""
    choices = first_stages(k)
    values = [worst_case(k, x) for x in choices]
    best = int(np.argmax(values))
    return choices[best], values[best]
