"""The loops that families of methods share; a method is a loop with its blocks chosen."""

from bilevel.loops.barrier import barrier_multiplier
from bilevel.loops.growth import Growth, most_steps, steps_at
from bilevel.loops.infeasibility import infeasibility, penalised
from bilevel.loops.minimax import Saddle, proximal_saddle, saddle
from bilevel.loops.nested import Nested, NestedState
from bilevel.loops.online import OnlineState, OnlineToNonconvex
from bilevel.loops.penalty import Anchors, Penalty, PenaltyState
from bilevel.loops.sampled import Directions, Point, Sample, Sampled
from bilevel.loops.simultaneous import Simultaneous, SimultaneousState
from bilevel.loops.tracked import Tracked, TrackedState
from bilevel.loops.two_timescale import TwoTimescale, TwoTimescaleState
from bilevel.loops.value_gap import Gap, ValueGap, ValueGapState, value_gap
from bilevel.loops.zeroth import Zeroth, ZerothState

__all__ = [
    "Anchors",
    "Directions",
    "Gap",
    "Growth",
    "Nested",
    "NestedState",
    "OnlineState",
    "OnlineToNonconvex",
    "Penalty",
    "PenaltyState",
    "Point",
    "Saddle",
    "Sample",
    "Sampled",
    "Simultaneous",
    "SimultaneousState",
    "Tracked",
    "TrackedState",
    "TwoTimescale",
    "TwoTimescaleState",
    "ValueGap",
    "ValueGapState",
    "Zeroth",
    "ZerothState",
    "barrier_multiplier",
    "infeasibility",
    "most_steps",
    "penalised",
    "proximal_saddle",
    "saddle",
    "steps_at",
    "value_gap",
]
