"""What `bilevel evaluate` does."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from rich.console import Console

from bilevel.apps.llm.evaluation.harness import Scorer, language_model
from bilevel.apps.llm.evaluation.settings import Evaluate
from bilevel.apps.llm.hub import find
from bilevel.files.needs import needs
from bilevel.report import check_writable

Scores = dict[str, dict[str, float]]  # by task and metric


def run(asked: Evaluate) -> None:
    """Score, print, write.

    Raises:
        ValueError, FileNotFoundError, ImportError: in one sentence.
    """
    if asked.out is not None and asked.out.exists():
        raise ValueError(f"{asked.out} exists; give a new file.")
    out = asked.out and check_writable(asked.out, "the scores")
    found = find.find(asked.model)
    scorer = Scorer(found.load(dtype=jnp.float32), found.tokenizer, asked.batch)
    scores = evaluate(scorer, asked.tasks, asked.task, shots=asked.shots, limit=asked.limit)
    console = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
    for task, numbers in scores.items():
        told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        console.print(f"{task}: {told}")
    if out is not None:
        out.write_text(json.dumps(scores, indent=1) + "\n")


def evaluate(
    scorer: Scorer,
    folder: Path,
    names: tuple[str, ...] = (),
    *,
    shots: int | None = None,
    limit: int | None = None,
) -> Scores:
    """The scores of a model on tasks of a folder, all of them when no name is given.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder has no such task.
        ImportError: lm-eval is not installed.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of task files.")
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # read when lm-eval is imported
        os.environ.setdefault(variable, "1")
    model = language_model(scorer)
    manager = needs("lm_eval.tasks").TaskManager(include_path=str(folder), include_defaults=False)
    every = sorted(manager.all_subtasks)
    unknown = [name for name in names if name not in every]
    if unknown or not every:
        have = ", ".join(every) or "none"
        raise ValueError(f"{folder} has no task {', '.join(unknown)}; it has {have}.")
    found = needs("lm_eval.evaluator").simple_evaluate(
        model,
        tasks=list(names or every),
        num_fewshot=shots,
        limit=limit,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=False,
        torch_random_seed=None,
    )
    return {task: _numbers(results) for task, results in found["results"].items()}


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """The metrics, under their names without the filter."""
    return {
        name.partition(",")[0]: float(value)
        for name, value in results.items()
        if "stderr" not in name and type(value) in (int, float) and "," in name
    }
