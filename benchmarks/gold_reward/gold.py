"""Gold rewards: known functions of a response, which no method sees."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

LENGTH = 6  # words and marks


@functools.cache
def _vader():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def sentiment(said: Sequence[str]) -> np.ndarray:
    """The compound score of VADER, from -1 (negative) to 1 (positive).

    Hutto, Gilbert. "VADER: A parsimonious rule-based model for sentiment analysis of social media
    text". ICWSM 2014.
    """
    return np.array([_vader().polarity_scores(one)["compound"] for one in said])


def length(said: Sequence[str]) -> np.ndarray:
    """1 for LENGTH different words; less for each that is missing, beyond, or repeated."""
    words = [one.split() for one in said]
    counts = np.array([len(row) for row in words])
    repeated = np.array([len(row) - len(set(row)) for row in words])
    return 1 - (np.abs(counts - LENGTH) + repeated) / LENGTH


GOLDS: dict[str, Callable[[Sequence[str]], np.ndarray]] = {"sentiment": sentiment, "length": length}
SCALE = {"sentiment": 6.0, "length": 4.0}  # the true reward is the gold reward times this
