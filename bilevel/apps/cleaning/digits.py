"""What is to be cleaned, and an example: handwritten digits with wrong labels."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Labelled(NamedTuple):
    """Samples and their labels, one row each."""

    inputs: Float[Array, "n ..."]
    labels: Int[Array, " n"]


class Task(NamedTuple):
    """Training samples with doubtful labels, and clean ones to judge by."""

    train: Labelled
    validation: Labelled  # clean: the upper loss
    test: Labelled  # clean, and not seen by any method
    wrong: Bool[np.ndarray, " n"]  # which training labels are wrong; methods do not see it


def digits(wrong: float = 0.5, seed: int = 0, *, clean: int = 300) -> Task:
    """Handwritten digits, 8 by 8, with a share of wrong labels.

    800 samples to train on, at most 300 for validation, 697 for the test. A wrong label is uniform
    among the other nine. The seed decides the split and the labels.

    Args:
        clean: samples for validation; fewer are the first of the 300.

    Raises:
        ValueError: `wrong` is not a share, or `clean` is not between 10 and 300.
        ImportError: scikit-learn, which holds the data, is not installed.
    """
    if not 0 <= wrong <= 1:
        raise ValueError(f"wrong is {wrong}; a share of labels between 0 and 1 is needed.")
    if not 10 <= clean <= 300:
        raise ValueError(f"clean is {clean}; a number of samples from 10 to 300 is needed.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed: pip install 'bilevel[demo]'"
        ) from error
    inputs, labels = load_digits(return_X_y=True)
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(labels))
    inputs, labels = inputs[order] / 16, labels[order]
    mask = np.zeros(800, bool)
    mask[draw.choice(800, round(800 * wrong), replace=False)] = True
    given = labels.copy()
    given[:800][mask] = (given[:800][mask] + draw.integers(1, 10, mask.sum())) % 10

    def part(rows: slice) -> Labelled:
        return Labelled(jnp.asarray(inputs[rows], float), jnp.asarray(given[rows], int))

    return Task(part(slice(800)), part(slice(800, 800 + clean)), part(slice(1100, None)), mask)
