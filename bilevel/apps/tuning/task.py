"""What the command tunes: a table as rows, a loss and groups of features."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bilevel import losses
from bilevel.apps.tuning.settings import Model, Per, Tune
from bilevel.apps.tuning.two_levels import Sharing
from bilevel.files import Table, Target, listed, read_table, read_target
from bilevel.losses import RowLoss, Rows


class Task(NamedTuple):
    """Rows to train on and to test by, on standardised features."""

    train: Rows
    test: Rows
    names: tuple[str, ...]  # of the features
    penalties: tuple[str, ...]  # of the penalties
    sharing: Sharing
    classes: tuple[str, ...]
    loss: RowLoss
    measure: str
    unit: float  # what a loss is multiplied by to get the measure


class Features(NamedTuple):
    values: Float[np.ndarray, "rows d"]
    names: tuple[str, ...]
    columns: tuple[str, ...]  # the column of the table that each comes from


def read(asked: Tune) -> Task:
    """Read, split and standardise.

    Raises:
        ValueError, OSError, ImportError: in one sentence.
    """
    table = read_table(asked.data)
    wanted = {Model.RIDGE: False, Model.ELASTIC_NET: False, Model.LOGISTIC: True,
              Model.SOFTMAX: True}.get(asked.model)  # fmt: skip
    target = read_target(table, asked.target, wanted)
    if asked.model is Model.LOGISTIC and len(target.classes) > 2:
        raise ValueError(
            f"{table.file}: column {asked.target!r} has {len(target.classes)} classes; logistic "
            "regression is for two. Use --model softmax."
        )
    features = _features(table, asked)
    sharing, names = _sharing(features, target, asked, table)
    train, test = _split(target, asked)
    center, scale = _moments(features.values[train])
    inputs = (features.values - center) / scale
    values, unit = target.values, 1.0
    if not target.classes:
        (mean,), (deviation,) = _moments(target.values[train][:, None])
        values, unit = (target.values - mean) / deviation, 2 * deviation**2
    binary = len(target.classes) == 2 and asked.model is not Model.SOFTMAX
    loss = losses.logistic if binary else losses.softmax if target.classes else losses.squared
    return Task(
        Rows(inputs[train], values[train]),
        Rows(inputs[test], values[test]),
        features.names,
        names,
        sharing,
        target.classes,
        loss,
        "log loss" if target.classes else "squared error",
        float(unit),
    )


def _features(table: Table, asked: Tune) -> Features:
    """Columns of numbers as they are; of a column of labels one for each label."""
    names = table.others(asked.target, *asked.ignore)
    for name in asked.categorical:
        if name not in names:
            table.column(name)
            raise ValueError(f"--categorical {name} is the target or ignored; it is no feature.")
    if not names:
        raise ValueError(f"{table.file} has no column beside {asked.target!r} to learn from.")
    values, told, columns = [], [], []
    for name in names:
        if name in asked.categorical:
            codes, labels = table.categories(name)
            values += list(np.eye(len(labels))[codes].T)
            told += [f"{name}={label}" for label in labels]
            columns += [name] * len(labels)
        else:
            if not table.is_numeric(name):
                _refuse_text(table, name)
            values.append(table.numbers([name])[:, 0])
            told.append(name)
            columns.append(name)
    return Features(np.array(values).T, tuple(told), tuple(columns))


def _refuse_text(table: Table, name: str) -> None:
    try:
        table.numbers([name])
    except ValueError as error:
        more = f"Give --categorical {name} if it holds labels, or --ignore {name}."
        raise ValueError(f"{error} {more}") from error


def _sharing(
    features: Features, target: Target, asked: Tune, table: Table
) -> tuple[Sharing, tuple[str, ...]]:
    """Which coefficients share a penalty, and the names of the penalties."""
    outputs = len(target.classes) if len(target.classes) > 2 or asked.model is Model.SOFTMAX else 1
    d = len(features.names)
    shared = np.zeros(outputs, int)
    if asked.per is Per.CLASS:
        if outputs == 1:
            raise ValueError("--per class needs --model softmax, which has coefficients per class.")
        return Sharing(np.zeros(d, int), np.arange(outputs)), target.classes
    if asked.per is Per.FEATURE:
        return Sharing(np.arange(d), shared), features.names
    owner = dict.fromkeys(features.columns)
    label = {column: column for column in owner}
    for group in asked.group:
        members = [name.strip() for name in group.split(",")]
        for name in members:
            if name not in owner:
                raise ValueError(
                    f"--group {group}: {name!r} is no feature of {table.file}; features are "
                    f"{listed(owner)}."
                )
            if label[name] != name or (len(members) == 1):
                raise ValueError(
                    f"--group {group}: two columns or more that are in no other group."
                )
        label |= dict.fromkeys(members, "+".join(members))
    order = list(dict.fromkeys(label[column] for column in features.columns))
    numbers: Int[np.ndarray, " d"] = np.array([order.index(label[c]) for c in features.columns])
    return Sharing(numbers, shared), tuple(order)


def _split(target: Target, asked: Tune) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to test by, with the same shares of the classes."""
    n = len(target.values)
    order = np.random.default_rng(asked.seed).permutation(n)
    if target.classes:
        order = order[np.argsort(target.values[order], kind="stable")]
    marks = np.floor(np.arange(1, n + 1) * asked.test) > np.floor(np.arange(n) * asked.test)
    train, test = np.sort(order[~marks]), np.sort(order[marks])
    if len(test) < 2:
        raise ValueError(
            f"{asked.data} has {n} rows; --test {asked.test} leaves {len(test)} for the test, and "
            "2 are needed."
        )
    if target.classes:
        folds = max(asked.folds, 3)
        counts = np.bincount(target.values[train], minlength=len(target.classes))
        rare = int(np.argmin(counts))
        if counts[rare] < 2:
            raise ValueError(
                f"{asked.data}: class {target.classes[rare]!r} has {counts[rare]} rows to train "
                f"on; at least 2 are needed, and {folds} to be in every fold."
            )
    return train, test


def _moments(values: Float[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations; 1 in place of 0."""
    deviation = values.std(0)
    return values.mean(0), np.where(deviation > 0, deviation, 1.0)
