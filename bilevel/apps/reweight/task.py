"""What the command reweights: two tables as standardised rows."""

from typing import NamedTuple

import numpy as np

from bilevel import losses
from bilevel.apps.reweight.settings import Reweight
from bilevel.apps.reweight.two_levels import Sources
from bilevel.files import Table, Target, listed, read_table, read_target
from bilevel.losses import RowLoss, Rows


class Task(NamedTuple):
    """Training rows by source, trusted rows to learn the weights by, others to test by."""

    sources: Sources
    names: tuple[str, ...]  # of the sources
    validation: Rows
    test: Rows
    loss: RowLoss
    outputs: int
    measure: str
    unit: float  # what a loss is multiplied by to get the measure


def read(asked: Reweight) -> Task:
    """Read both files, check that they fit, standardise by the trusted rows' own columns.

    Raises:
        ValueError, OSError, ImportError: in one sentence.
    """
    table, trusted = read_table(asked.data), read_table(asked.validation)
    source = table.categories(asked.source)
    if len(source.names) == 1:
        raise ValueError(
            f"{table.file}: every row of column {asked.source!r} is {source.names[0]!r}; at least "
            "two sources are needed."
        )
    names = table.others(asked.target, asked.source, *asked.ignore)
    if not names:
        raise ValueError(f"{table.file} has no column to learn from.")
    missing = [name for name in (*names, asked.target) if name not in trusted.names]
    if missing:
        raise ValueError(f"{trusted.file} lacks {listed(missing)}, which {table.file} has.")
    target = read_target(table, asked.target)
    values = _trusted_target(trusted, asked.target, target)
    train, inputs = table.numbers(names), trusted.numbers(names)
    center, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    train, inputs, unit, known = (train - center) / scale, (inputs - center) / scale, 1.0, target
    if not target.classes:
        mean, deviation = target.values.mean(), target.values.std()
        known, values = Target((target.values - mean) / deviation), (values - mean) / deviation
        unit = 2 * float(deviation) ** 2
    order = np.random.default_rng(asked.seed).permutation(len(values))
    kept = int(len(values) * asked.test)
    if kept < 2 or len(values) - kept < 2:
        raise ValueError(
            f"{trusted.file} has {len(values)} rows; at least two to learn by and two to test by "
            "are needed. Give more rows, or another --test."
        )
    binary = len(target.classes) == 2
    loss = losses.logistic if binary else losses.softmax if target.classes else losses.squared
    learn, test = (Rows(inputs[rows], values[rows]) for rows in (order[kept:], order[:kept]))
    return Task(
        Sources(Rows(train, known.values), source.codes),
        source.names,
        learn,
        test,
        loss,
        1 if binary or not target.classes else len(target.classes),
        "log loss" if target.classes else "squared error",
        unit,
    )


def _trusted_target(trusted: Table, name: str, target: Target) -> np.ndarray:
    """The target of the trusted rows, in the classes of the training rows."""
    if not target.classes:
        return trusted.numbers([name])[:, 0]
    codes, names = trusted.categories(name)
    unknown = [label for label in names if label not in target.classes]
    if unknown:
        raise ValueError(
            f"{trusted.file}: column {name!r} has classes {listed(unknown)}, which the training "
            "rows lack."
        )
    return np.array([target.classes.index(label) for label in names])[codes]
