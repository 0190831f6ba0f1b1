"""What a model remembers, in numbers: those of TOFU and of MUSE, from losses and texts.

A loss is minus the mean log-probability of the tokens of an answer, so that `exp(−loss)` is the
probability of a token, and long answers compare with short ones.

TOFU: Maini, Feng, Schwarzschild, Lipton, Kolter. "TOFU: a task of fictitious unlearning for LLMs".
COLM 2024, arXiv:2401.06121. MUSE: Shi et al. "MUSE: machine unlearning six-way evaluation for
language models". ICLR 2025, arXiv:2407.06460.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

Losses = Float[np.ndarray, " n"]
Several = Float[np.ndarray, "n k"]  # of k wrong answers to each question

# --- by losses ---------------------------------------------------------------------------------


def probability(loss: Losses) -> float:
    """Mean over the answers of the probability of a token, in [0, 1]."""
    return float(np.exp(-loss).mean())


def choice(loss: Losses, wrong: Several) -> float:
    """Mean share of the right answer in the probabilities of all answers, in [0, 1]."""
    right = np.exp(-loss)
    return float((right / (right + np.exp(-wrong).sum(axis=1))).mean())


def truth_ratio(loss: Losses, wrong: Several) -> Float[np.ndarray, " n"]:
    """`exp(mean loss of the wrong answers − loss of the right one)`, one for each question.

    1 where the model cannot tell the right answer from wrong ones, large where it knows it. The
    paper of TOFU writes its inverse, its code this.
    """
    return np.exp(wrong.mean(axis=1) - loss)


def truth_score(ratio: Float[np.ndarray, " n"]) -> float:
    """`mean max(0, 1 − 1/ratio)`, in [0, 1]: 1 where all right answers are known."""
    return float(np.maximum(0, 1 - 1 / ratio).mean())


def forget_quality(unlearned: Float[np.ndarray, " n"], retrained: Float[np.ndarray, " m"]) -> float:
    """The p-value that two models' truth ratios on the forget set come from one distribution.

    A two-sample Kolmogorov-Smirnov test. The other model was trained without the forget set. Above
    0.05 the two cannot be told apart by this test; with few questions it tells little apart.
    """
    found: Any = stats.ks_2samp(unlearned, retrained)
    return float(found.pvalue)


def utility(parts: Sequence[Sequence[float]]) -> float:
    """The harmonic mean of all numbers of all parts; 0 as soon as one of them is 0.

    TOFU has nine: probability, ROUGE-L recall and truth score on what is retained, on real authors
    and on facts of the world. On the last two the probability is `choice`.
    """
    return float(stats.hmean(np.concatenate([np.asarray(part, float) for part in parts])))


# --- by texts ----------------------------------------------------------------------------------


class Rouge(NamedTuple):
    """ROUGE-L: the longest common subsequence of words, as a share of words."""

    recall: float  # of the true text
    precision: float  # of the text said
    f: float  # harmonic mean of both


def rouge_l(said: str, true: str) -> Rouge:
    """How much of a text was said. Words are letters and digits in lower case, and not stemmed.

    Lin. "ROUGE: a package for automatic evaluation of summaries". ACL 2004 workshop.
    """
    said_words, true_words = (re.findall(r"[^\W_]+", text.lower()) for text in (said, true))
    common = _longest_common(said_words, true_words)
    if not common:
        return Rouge(0.0, 0.0, 0.0)
    recall, precision = common / len(true_words), common / len(said_words)
    return Rouge(recall, precision, 2 * recall * precision / (recall + precision))


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0  # of the last row, one column to the left
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


# --- privacy -----------------------------------------------------------------------------------


def least_likely(
    logprobs: Float[np.ndarray, "n time"], mask: Bool[np.ndarray, "n time"], share: float = 0.4
) -> Float[np.ndarray, " n"]:
    """Min-K %: the mean log-probability of the least likely tokens of each text.

    It is higher for texts that the model was trained on. At least one token counts. Shi et al.
    "Detecting pretraining data from large language models". ICLR 2024, arXiv:2310.16789.
    """
    ordered = np.sort(np.where(mask, logprobs, np.inf), axis=1)
    count = np.maximum(1, (share * mask.sum(axis=1)).astype(int))
    taken = np.arange(mask.shape[1]) < count[:, None]
    return np.where(taken, ordered, 0).sum(axis=1) / count


def auc(members: Losses, others: Losses) -> float:
    """The probability that a member has a higher score than another; ties count half."""
    found = stats.mannwhitneyu(members, others, method="asymptotic").statistic
    return float(found / (len(members) * len(others)))


def privacy_leakage(unlearned: float, retrained: float) -> float:
    """`(AUC of the unlearned model − AUC of the retrained one) / AUC of the retrained one`.

    The AUC tells the forget set from texts that no model has seen, by `least_likely`. 0 is ideal.
    Above, the answers are remembered; below, they are suspiciously unlikely. NaN where the AUC of
    the retrained one is 0, which happens with a handful of texts.
    """
    return (unlearned - retrained) / retrained if retrained else math.nan
