"""From files to weights and a model trained with them: what `bilevel mix` does.

given = load(asked)
learned = learn(given, Path("mixed.run"))
found = train(given, learned.weights, Path("mixed.run"))
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, PyTree

from bilevel.apps.llm.data.encode import Row
from bilevel.apps.llm.mixing import doge, mixture, scalebio
from bilevel.apps.llm.mixing.settings import Method, Mix, Weigh
from bilevel.apps.llm.mixing.task import TokenLoss, mean_loss, share, training
from bilevel.apps.llm.models.lisa import LISA
from bilevel.apps.llm.policies.policy import Responses, size
from bilevel.apps.llm.run.kept import solve_one_level
from bilevel.apps.llm.run.method import policy_update, step_size
from bilevel.apps.llm.run.several import Opened, open_files, parted
from bilevel.data import Data
from bilevel.driver import Result
from bilevel.methods import TTSA
from bilevel.updates import AbstractUpdate, FromOptax

Callbacks = Sequence[Callable[[int, Any, Any], Any]]
TARGET = "target loss"  # a column of the history
JUDGED = 256  # rows that are judged by, at most
ADVICE = (
    "Lower --batch or --length, raise --accumulate, adapt fewer --layers with a smaller --rank, or "
    "move fewer --blocks."
)


class Session(NamedTuple):
    """A model, what it can learn from, and what it is judged by."""

    opened: Opened
    settings: Mix
    names: tuple[str, ...]  # of the sources
    sources: tuple[Responses, ...]
    target: Responses  # to learn the weights by
    judged: Responses  # other rows of the target; some of these where none are held out
    apart: bool  # whether they are others

    @property
    def loss(self) -> TokenLoss:
        return TokenLoss(self.opened.policy)

    @property
    def parts(self) -> tuple[slice, ...]:
        """Where the weights of each source are: one of the whole source, or one of each row."""
        by_row = self.settings.weigh is Weigh.ROW
        counts = [size(source) if by_row else 1 for source in self.sources]
        ends = np.cumsum(counts).tolist()
        return tuple(slice(end - n, end) for end, n in zip(ends, counts, strict=True))


class Learned(NamedTuple):
    """A weight for each source (or row), and the run that found them, if there was one."""

    weights: Float[np.ndarray, " weights"]
    result: Result | None


def load(asked: Mix) -> Session:
    """Read the model and the files, and check them together with the options.

    Raises:
        FileNotFoundError, ValueError, ImportError: the message says in one sentence what is wrong.
    """
    files = {name: Path(name) for name in asked.sources}
    opened = open_files(asked.model, files | {_TARGET: asked.target}, asked)
    rows = {name: opened.rows[name] for name in asked.sources}
    _check(rows, opened.rows[_TARGET], asked)
    target, held = parted(opened.rows[_TARGET], asked)
    sources = tuple(map(opened.responses, rows.values()))
    learned, judged = map(opened.responses, (target, (held or target)[:JUDGED]))
    names = _short(asked.sources)
    return Session(opened, asked, names, sources, learned, judged, bool(held))


_TARGET = ""  # no name of a file


def _check(rows: Mapping[str, list[Row]], target: list[Row], asked: Mix) -> None:
    """Every source has rows enough, and rows of its own."""
    for name, some in (*rows.items(), (str(asked.target), target)):
        if len(_content(some)) < 2:
            times = f", {len(some)} times" if len(some) > 1 else ""
            raise ValueError(f"{name} has one row{times}; at least two different ones are needed.")
    seen: dict[Any, str] = {_content(target): f"the target, {asked.target}"}
    for name, some in rows.items():
        if (content := _content(some)) in seen:
            raise ValueError(f"{name} holds the same rows as {seen[content]}; leave it out.")
        seen[content] = name


def _content(rows: list[Row]) -> Any:
    return frozenset((tuple(row.prompt), tuple(row.response)) for row in rows)


def _short(files: Sequence[str]) -> tuple[str, ...]:
    """Names of files without folder and ending, where those differ."""
    short = tuple(Path(name).name.partition(".")[0] for name in files)
    return short if len({*short}) == len(short) else tuple(files)


# --- weights -----------------------------------------------------------------------------------


def learn(given: Session, folder: Path | None, *, callbacks: Callbacks = ()) -> Learned:
    """Learn the weights, with the state of the run kept in a folder.

    The metrics are the weight of each source, by its name, and the loss on held-out target rows.

    Raises:
        Refused: out of memory, with what to lower.
    """
    asked, loss, k = given.settings, given.loss, given.parts[-1].stop
    if not asked.learns:
        return Learned(np.full(k, 1 / k), None)
    steps = asked.weight_steps or asked.steps
    if asked.method is Method.SCALEBIO:
        rate = step_size(asked, asked.weight_rate, steps)
        updates = [_update(asked, steps, copy) for copy in (1, 2)]
        method = scalebio.method(updates[0], FromOptax(optax.adam, rate), updates[1])
        problem, start = scalebio.problem(loss, asked.penalty), scalebio.start
    else:
        method = doge.method(_update(asked, steps, 1))
        problem, start = doge.problem(loss, asked.weight_rate), doge.start
    target_rows = asked.target_batch or asked.batch
    if asked.weigh is Weigh.ROW:
        data = mixture.row_data(given.sources, given.target, asked.batch, target_rows)
    else:
        data = mixture.data(given.sources, given.target, -(-asked.batch // k), target_rows)
    result = solve_one_level(
        problem,
        method,
        start(k, given.opened.start),
        data,
        asked=asked,
        steps=steps,
        folder=folder and folder / "weights",
        metrics={TARGET: mean_loss(loss, given.judged, _model_of)}
        | {
            column(name): share(part, _weights_of)
            for name, part in zip(given.names, given.parts, strict=True)
        },
        callbacks=callbacks,
        advice=ADVICE,
    )
    return Learned(np.asarray(_weights_of(result.x)), result)


def column(name: str) -> str:
    """Of the history, for the weight of a source."""
    return f"weight of {name}"


def _weights_of(v: Any):
    return v.mean if isinstance(v, doge.Online) else mixture.weights(v.x)


def _model_of(v: Any) -> PyTree:
    return v.y


# --- the model ---------------------------------------------------------------------------------


def train(
    given: Session,
    weights: Float[np.ndarray, " weights"],
    folder: Path | None,
    *,
    callbacks: Callbacks = (),
) -> Result:
    """Train the model that was given on rows drawn with the weights.

    The result's x are the parameters of the policy.

    Raises:
        Refused: out of memory, with what to lower.
    """
    asked, loss = given.settings, given.loss
    alone = asked.method is Method.TARGET
    sources, weights = ((given.target,), np.ones(1)) if alone else (given.sources, weights)
    return solve_one_level(
        training(loss),
        TTSA(_update(asked, asked.steps, 0)),
        given.opened.start,
        Data(mixture.drawn(sources, jnp.asarray(weights), asked.batch)),
        asked=asked,
        steps=asked.steps,
        folder=folder and folder / "model",
        metrics={TARGET: mean_loss(loss, given.judged, _itself)},
        callbacks=callbacks,
        advice=ADVICE,
    )


def _itself(x: PyTree) -> PyTree:
    return x


def _update(asked: Mix, steps: int, copy: int) -> AbstractUpdate:
    """AdamW of one copy of the model, of all layers or some."""
    update = policy_update(asked, steps)
    if asked.blocks is None:
        return update
    return LISA(update, asked.blocks, seed=3 * asked.seed + copy)
