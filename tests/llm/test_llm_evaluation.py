"""`bilevel evaluate`: what lm-eval asks a model, by hand; and a task of our own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run
from test_llm_tokenizer import write as write_tokenizer

from bilevel.apps.llm.evaluation.harness import Scorer, language_model
from bilevel.apps.llm.hub import checkpoint, find
from bilevel.apps.llm.models import config, decoder, parameters

CONFIG = config.llama(300, 16, 32, 1, 2, tied=True, max_length=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "model"
    made = checkpoint.new(CONFIG, parameters.init(CONFIG, jax.random.key(0), deviation=0.3))
    checkpoint.save(made, path)
    return write_tokenizer(path)


@pytest.fixture(scope="module")
def scorer(folder):
    found = find.find(folder)
    return Scorer(found.load(dtype=jnp.float32), found.tokenizer, 2)


def logprobs(scorer, ids):
    """Of every token but the first, and the likeliest tokens in their places."""
    tokens = jnp.asarray([ids], jnp.int32)
    scores = np.asarray(decoder.logits(CONFIG, scorer.loaded.params, tokens))[0, :-1]
    every = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return np.take_along_axis(every, np.array(ids)[1:, None], 1)[:, 0], scores.argmax(axis=1)


@pytest.mark.slow
def test_scores_are_those_of_the_logits(scorer):
    rows = [scorer.row("ab", " cd"), scorer.row("abc", " d"), scorer.row("", "a")]
    for row, score in zip(rows, scorer.scores(rows), strict=True):
        found, best = logprobs(scorer, row.prompt + row.response)
        n = len(row.response)
        assert score.logprob == pytest.approx(found[-n:].sum(), rel=1e-4)
        assert score.greedy == (best[-n:].tolist() == row.response)


def test_a_long_text_is_read_in_windows_and_every_token_once(scorer):
    text = "abcdefghijklmnopqrstuvwxyz"
    ids = scorer.text.encode(text)
    rows = scorer.rolling(text)
    assert [token for row in rows for token in row.response] == ids
    assert all(len(row.prompt) + len(row.response) <= CONFIG.max_length for row in rows)
    whole = [*scorer.begun([]), *ids]
    last = rows[-1]
    assert whole[-CONFIG.max_length :] == last.prompt + last.response  # as much as there is room


@pytest.mark.slow
def test_the_likeliest_text_follows_up_to_a_mark(scorer):
    (said,) = scorer.continued(["ab"], 3, ())
    ids = scorer.begun(scorer.text.encode("ab"))
    for _ in range(3):
        ids.append(int(logprobs(scorer, [*ids, 0])[1][-1]))
        if ids[-1] in scorer.text.stop:
            break
    assert said == scorer.text.decode(ids[len(scorer.begun(scorer.text.encode("ab"))) :])
    if len(said) > 1:
        assert scorer.continued(["ab"], 3, (said[1],)) == [said[: said.index(said[1])]]


def test_a_place_for_scores_that_is_not_there_is_refused_before_any_work(tmp_path):
    asked = ("--model", str(tmp_path), "--tasks", str(tmp_path), "--out", str(tmp_path / "no/a"))
    found = run("evaluate", *asked)
    assert found.exit_code == 2
    assert "the scores cannot be written to" in found.output


def test_a_folder_without_tasks_is_refused(folder, tmp_path):
    found = run("evaluate", "--model", str(folder), "--tasks", str(tmp_path / "none"))
    assert found.exit_code == 2
    assert "is not a folder of task files" in found.output


# --- with lm-eval ------------------------------------------------------------------------------

TASK = """
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: ["a", "b"]
metric_list:
  - metric: acc
"""


@pytest.mark.slow
def test_a_task_of_ones_own_is_scored(scorer, folder, tmp_path):
    pytest.importorskip("lm_eval")
    likelier = []
    for asked in ("x", "y", "z"):
        scores = scorer.scores([scorer.row(f"{asked} ?", f" {one}") for one in "ab"])
        likelier.append(int(scores[1].logprob > scores[0].logprob))
    right = [*likelier[:2], 1 - likelier[2]]  # the last one is told wrong
    rows = [{"question": f"{q} ?", "answer": a} for q, a in zip("xyz", right, strict=True)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    tasks, out = tmp_path / "tasks", tmp_path / "scores.json"
    tasks.mkdir()
    (tasks / "letters.yaml").write_text(TASK.format(file=tmp_path / "rows.json"))
    found = run("evaluate", "--model", str(folder), "--tasks", str(tasks), "--out", str(out))
    assert found.exit_code == 0, found.output
    assert json.loads(out.read_text()) == {"letters": {"acc": pytest.approx(2 / 3)}}
    assert language_model(scorer).loglikelihood_rolling([]) == []
    found = run("evaluate", "--model", str(folder), "--tasks", str(tasks), "--task", "numbers")
    assert found.exit_code == 2
    assert "has no task numbers; it has letters." in found.output
