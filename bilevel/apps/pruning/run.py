"""`bilevel prune`: files in, a pruned network and a table out."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree, Scalar
from rich.console import Console

from bilevel import files, report
from bilevel.apps.pruning.masks import AbstractMasking, NofM, Slices, Unstructured, kept
from bilevel.apps.pruning.settings import Kind, Prune
from bilevel.apps.pruning.ways import Pruned, one_shot, prune
from bilevel.driver import Outcome
from bilevel.options import rows

Samples = tuple[Array, Array]  # inputs and labels
SEEN = 0.8  # share of the samples to train on, where the data name no test


class Task(NamedTuple):
    """What the files hold."""

    params: dict[str, Array]
    train: Samples
    test: Samples


def run(options: Prune) -> None:
    """Prune, show a table, write the arrays.

    Raises:
        ValueError, OSError, ImportError: in one sentence, before anything runs.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is written.
    """
    report.check_writable(files.check_format(options.out), "the network")
    if options.report is not None:
        report.check_writable(options.report)
    scores, task = files.load_function(options.model), load(options)
    check_model(scores, task, options.model)
    loss, chosen = cross_entropy(scores), masking(options)
    shared = {name: getattr(options, name) for name in SHARED}
    found = prune(loss, task.params, task.train, chosen, mask_step=options.mask_step, **shared)
    if found.result is not None and found.result.status.outcome is Outcome.INTERRUPTED:
        raise KeyboardInterrupt
    rival = one_shot(loss, task.params, task.train, chosen, **shared)
    files.write_arrays(options.out, {n: np.asarray(a) for n, a in found.params.items()})
    told = summary(scores, task, found, rival)
    console = Console(soft_wrap=True, highlight=False)
    console.print("\n".join(told.lines()), markup=False)
    console.print(f"Pruned arrays written to {options.out}", markup=False)
    if options.report is not None:
        report.write(options.report, "A pruned network", told.sections(options))
        console.print(f"Report written to {options.report}", markup=False)


SHARED = ("steps", "batch", "step", "decay", "keep", "seed")


def masking(options: Prune) -> AbstractMasking:
    """What the options ask to keep."""
    axis = options.layout.axis(options.kind)
    if options.kind is Kind.UNSTRUCTURED:
        return Unstructured(options.density)
    if options.kind is not Kind.N_OF_M:
        return Slices(options.density, axis)
    n, m = options.pattern
    if not 1 <= n < m:
        raise ValueError(f"pattern is {n},{m}; n of m inputs stay, so 1 <= n < m is needed.")
    return NofM(n, m, axis)


def load(options: Prune) -> Task:
    """The arrays of both files, checked.

    Raises:
        ValueError: a name is missing, rows do not agree, labels are no whole numbers, or weights
            are not finite.
    """
    params = files.read_arrays(options.weights)
    for name, array in params.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{options.weights}, {name!r}: finite floating numbers are needed.")
    found = files.read_arrays(options.data)
    train = _samples(options.data, found, "")
    if "test_inputs" in found:
        test = _samples(options.data, found, "test_")
    elif len(train[1]) < 5:
        raise ValueError(f"{options.data} has {len(train[1])} samples; at least 5 are needed.")
    else:
        order = np.random.default_rng(options.seed).permutation(len(train[1]))
        cut = int(SEEN * len(order))
        test, train = ((train[0][rows], train[1][rows]) for rows in (order[cut:], order[:cut]))
    return Task(*jax.tree.map(jnp.asarray, (params, train, test)))


def _samples(file: Path, arrays: dict[str, np.ndarray], prefix: str) -> tuple:
    for name in ("inputs", "labels"):
        if prefix + name not in arrays:
            raise ValueError(f"{file} has no {prefix}{name}; it has {', '.join(arrays)}.")
    inputs, labels = arrays[f"{prefix}inputs"], arrays[f"{prefix}labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels < 0).any():
        raise ValueError(
            f"{file}: {prefix}labels is {labels.dtype}{list(labels.shape)}; the number of a class, "
            "from 0, is needed for each sample."
        )
    if len(inputs) != len(labels) or not len(labels):
        raise ValueError(f"{file}: {len(inputs)} {prefix}inputs, but {len(labels)} labels.")
    if not np.isfinite(inputs).all():
        raise ValueError(f"{file}: {prefix}inputs holds NaN or infinity.")
    return inputs, labels.astype(int)


def check_model(scores: Callable, task: Task, name: str) -> None:
    """Raises ValueError where the model fails, or gives no row of scores for each sample."""
    inputs, labels = task.train
    n, classes = len(labels), 1 + int(max(labels.max(), task.test[1].max()))
    try:
        found = jax.eval_shape(scores, task.params, inputs)
    except Exception as error:  # whatever the user's code raises
        told = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name}(weights, inputs) failed, with {type(error).__name__}: {told} (the names of "
            f"the weights are {', '.join(task.params)})"
        ) from error
    shape = getattr(found, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != n or shape[1] < classes:
        raise ValueError(
            f"{name}(weights, inputs) gives {shape or type(found).__name__}; scores of shape "
            f"({n}, {classes}) are needed, a row a sample and a column a class."
        )


def cross_entropy(scores: Callable) -> Callable[[PyTree, Samples], Scalar]:
    """The mean cross-entropy of a classifier `scores(params, inputs)`."""

    def loss(params, batch):
        inputs, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(
            scores(params, inputs), labels
        ).mean()

    return loss


def accuracy(scores: Callable, params: PyTree, samples: Samples) -> float:
    """The share of samples whose largest score is that of their label."""
    return float(jnp.mean(jnp.argmax(jax.jit(scores)(params, samples[0]), axis=1) == samples[1]))


class Summary(NamedTuple):
    """What the run found."""

    tests: dict[str, float]  # accuracy by way of pruning
    layers: list[tuple[str, int, int, int]]  # name, weights, kept by BiP, kept by magnitude
    density: float
    found: Pruned

    def lines(self) -> list[str]:
        width = max(len(name) for name, *_ in self.layers)
        told = [f"{value:.4f}  test accuracy, {name}" for name, value in self.tests.items()]
        told += [f"{self.density:.4f}  of the prunable weights kept", ""]
        told += [f"{'':{width}} {'weights':>10} {'BiP':>9} {'magnitude':>10}"]
        return told + [f"{n:{width}} {a:>10} {b:>9} {c:>10}" for n, a, b, c in self.layers]

    def sections(self, options: Prune) -> list[report.Section]:
        cards = [(f"{value:.3f}", f"test accuracy, {name}") for name, value in self.tests.items()]
        cards.append((f"{self.density:.2%}", "of the prunable weights kept"))
        table = report.Table(("array", "weights", "kept by BiP", "by magnitude"), self.layers)
        about = "changed: the share of the kept weights that magnitude alone would not keep."
        asked = report.Table(("option", "value", "what it is"), rows(options))
        assert self.found.result is not None
        return [
            report.Section("In short", [report.Numbers(cards)]),
            report.Section("Weights kept, array by array", [table, report.Text(about)]),
            *report.of({"BiP": self.found.result}),
            report.Section("Options", [asked]),
        ]


def summary(scores: Callable, task: Task, found: Pruned, rival: Pruned) -> Summary:
    """Accuracies on the test samples, and what is kept in each array."""
    tests = {
        "before pruning": accuracy(scores, task.params, task.test),
        "pruned by BiP": accuracy(scores, found.params, task.test),
        "by magnitude at once, then trained as long": accuracy(scores, rival.params, task.test),
    }
    layers = [(n, m.size, int(m.sum()), int(rival.masks[n].sum())) for n, m in found.masks.items()]
    return Summary(tests, layers, kept(found.masks), found)
