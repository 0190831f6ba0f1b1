"""Training samples with doubtful labels and clean ones, from tables, arrays and folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bilevel.apps.cleaning.digits import Labelled, Task
from bilevel.files import read_arrays, read_pictures, read_table

FEWEST = 10  # training samples
CLEAN = 5  # clean ones


class Rows(NamedTuple):
    """Samples of one file, with what a person finds them by."""

    inputs: np.ndarray  # a row each
    labels: tuple[str, ...]  # as they stand in the file
    places: tuple[str, ...]  # line of the file, row of the array, or picture
    columns: tuple[str, ...]  # of a table


class Given(NamedTuple):
    """A task, and the words for its numbers."""

    task: Task
    classes: tuple[str, ...]
    places: tuple[str, ...]  # of the training samples


def read(data: Path, clean: Path, test: Path | None = None, target: str = "y") -> Given:
    """Read and scale the samples; classes are those of the clean ones.

    A table has columns of numbers and the column `target`; an npz file the arrays `inputs` and
    `labels`; a folder of pictures of one size has a folder for each class. Inputs are scaled to
    mean 0 and deviation 1 of the training samples: each column, or a whole array of more axes.

    Raises:
        FileNotFoundError, ValueError, ImportError: in one sentence.
    """
    train, right = _rows(data, target), _rows(clean, target)
    tested = None if test is None else _rows(test, target)
    files = {data: train, clean: right} | ({} if test is None or tested is None else {test: tested})
    for file, rows in files.items():
        _check_like(file, rows, data, train)
    _check_sizes(data, train, clean, right)
    names = _order(right.labels)
    if len(names) < 2:
        raise ValueError(
            f"{clean} has one class only, {right.labels[0]!r}; at least two are needed."
        )
    tested = Rows(train.inputs[:0], (), (), ()) if tested is None else tested
    axis = 0 if train.inputs.ndim == 2 else None
    shift, scale = train.inputs.mean(axis), train.inputs.std(axis)
    scale = np.where(scale > 0, scale, 1.0)
    code = {name: i for i, name in enumerate(names)}

    def part(file: Path, rows: Rows) -> Labelled:
        for place, label in zip(rows.places, rows.labels, strict=True):
            if label not in code:
                told = ", ".join(map(repr, names[:12]))
                raise ValueError(
                    f"{file}, {place}: no clean sample has the label {label!r}; theirs are {told}."
                )
        inputs = (rows.inputs - shift) / scale
        return Labelled(jnp.asarray(inputs, float), jnp.array([code[s] for s in rows.labels], int))

    parts = part(data, train), part(clean, right), part(test or data, tested)
    return Given(Task(*parts, np.zeros(len(train.labels), bool)), names, train.places)


def _rows(file: Path, target: str) -> Rows:
    if file.is_dir():
        return _folders(file)
    if file.suffix == ".npz":
        return _arrays(file)
    table = read_table(file)
    labels = table.categories(target)
    columns = table.others(target)
    if not columns:
        raise ValueError(f"{file} has no column besides {target!r}; columns of numbers are needed.")
    places = tuple(f"line {line}" for line in table.lines)
    return Rows(
        table.numbers(columns), tuple(labels.names[i] for i in labels.codes), places, columns
    )


def _arrays(file: Path) -> Rows:
    found = read_arrays(file)
    for name in ("inputs", "labels"):
        if name not in found:
            told = ", ".join(map(repr, list(found)[:12]))
            raise ValueError(f"{file} has no array {name!r}; it has {told}.")
    inputs, labels = found["inputs"], found["labels"]
    if inputs.ndim < 2 or labels.shape != inputs.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{file} has inputs {inputs.dtype}{list(inputs.shape)} and labels "
            f"{labels.dtype}{list(labels.shape)}; a row and a whole number are needed "
            "for each sample."
        )
    inputs = inputs.astype(float)
    if not np.isfinite(inputs).all():
        row = int(np.argmin(np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)))
        raise ValueError(f"{file}, row {row} of inputs: a value is not finite.")
    places = tuple(f"row {i}" for i in range(len(labels)))
    return Rows(inputs, tuple(map(str, labels.tolist())), places, ())


def _folders(folder: Path) -> Rows:
    classes = sorted(one for one in folder.iterdir() if one.is_dir())
    if not classes:
        raise ValueError(
            f"{folder} holds no folder; a folder of pictures for each class is needed."
        )
    pictures = [(one.name, picture) for one in classes for picture in read_pictures(one)]
    first = pictures[0][1]
    for _, picture in pictures:
        if picture.pixels.shape != first.pixels.shape:
            raise ValueError(
                f"{picture.file} has the shape {picture.pixels.shape} and {first.file} "
                f"{first.pixels.shape} (height, width, colours); pictures of one size are needed."
            )
    places = tuple(str(picture.file.relative_to(folder)) for _, picture in pictures)
    labels = tuple(name for name, _ in pictures)
    return Rows(np.stack([picture.pixels for _, picture in pictures]), labels, places, ())


def _check_like(file: Path, rows: Rows, data: Path, train: Rows) -> None:
    if rows.columns != train.columns:
        odd = sorted(set(rows.columns) ^ set(train.columns))
        told = f"{odd[0]!r} is in one of them only" if odd else "their order differs"
        raise ValueError(f"{file} and {data} need the same columns; {told}.")
    if rows.inputs.shape[1:] != train.inputs.shape[1:]:
        raise ValueError(
            f"samples of {file} have the shape {rows.inputs.shape[1:]} and those of {data} "
            f"{train.inputs.shape[1:]}; one shape is needed."
        )


def _check_sizes(data: Path, train: Rows, clean: Path, right: Rows) -> None:
    for file, rows, fewest in ((data, train, FEWEST), (clean, right, CLEAN)):
        if len(rows.labels) < fewest:
            raise ValueError(
                f"{file} has {len(rows.labels)} samples; at least {fewest} are needed."
            )
    if len(set(train.labels)) < 2:
        raise ValueError(
            f"{data} has one class only, {train.labels[0]!r}; samples of at least two are needed."
        )


def _order(labels: Sequence[str]) -> tuple[str, ...]:
    names = sorted(set(labels))
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(names)
