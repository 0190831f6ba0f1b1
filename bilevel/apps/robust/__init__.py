"""Two-stage knapsack whose second stage is a learned value function, after Neur2RO.

First x is chosen, then the worst profits are met, then y. A small network learns `value(x, ξ)`,
what the best second stage gives, and stands in for it while first stages are compared: worst
scenarios that the network finds are added until none is new. The answer's own worst case is
solved exactly.

    min_x max_ξ min_y  first·x + second(ξ)·y   with x and y in one knapsack

Reference: Dumouchelle, Julien, Kurtz, Khalil. "Neur2RO: neural two-stage robust optimization". ICLR
2024, arXiv:2310.04345. Differs from the paper: first stages and scenarios are compared by listing
them, not by mixed-integer programs with the network inside.
"""

from bilevel.apps.robust.knapsack import Knapsack, instance, scenarios, second_stage, worst_case
from bilevel.apps.robust.learned import Value, choose, fit

__all__ = [
    "Knapsack",
    "Value",
    "choose",
    "fit",
    "instance",
    "scenarios",
    "second_stage",
    "worst_case",
]
