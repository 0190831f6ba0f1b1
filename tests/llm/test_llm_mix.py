"""`bilevel mix` on a tiny random checkpoint."""

import json
import pathlib
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run
from test_llm_tokenizer import write as write_tokenizer

from bilevel.apps.llm.hub import checkpoint
from bilevel.apps.llm.mixing import mixture
from bilevel.apps.llm.mixing import run as mixing
from bilevel.apps.llm.mixing.settings import Method, Mix
from bilevel.apps.llm.models import config, parameters
from bilevel.apps.llm.models.lisa import LISA
from bilevel.driver import Outcome, Result
from bilevel.updates import SGD

CONFIG = config.llama(300, 32, 64, 3, 2, tied=True, max_length=32)
WORDS = "ada", "bob", "eve", "kim", "liv", "max", "ned", "pam"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "model"
    made = checkpoint.new(CONFIG, parameters.init(CONFIG, jax.random.key(0), deviation=0.1))
    checkpoint.save(made, path)
    return str(write_tokenizer(path))


def rows(file, pairs):
    lines = ({"prompt": asked, "completion": answer} for asked, answer in pairs)
    file.write_text("\n".join(map(json.dumps, lines)))
    return str(file)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A good source, one whose answers are those of other names, one of noise; and the target."""
    path = tmp_path_factory.mktemp("data")
    asked = [f"{i} name {i}?" for i in range(8)]
    turned = WORDS[3:] + WORDS[:3]
    sources = [
        rows(path / "good.jsonl", zip(asked, (f" {word}" for word in WORDS), strict=True)),
        rows(path / "turned.jsonl", zip(asked, (f" {word}" for word in turned), strict=True)),
    ]
    target = rows(path / "target.jsonl", [(f"{i} name {i}?", f" {WORDS[i]}") for i in range(4)])
    return ["--sources", *sources, "--target", target]


QUICK = ["--batch", "8", "--rate", "0.01", "--log-every", "20", "--held-out", "0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "left"),  # of the loss; LoRA leaves the random embeddings of the model as they are
    [(["--rank", "0", "--blocks", "1"], 0.3), (["--rank", "4"], 0.6)],
)
def test_the_command_finds_the_source_that_helps_and_trains_with_it(
    folder, files, tmp_path, more, left
):
    out = tmp_path / "out"
    typed = ["mix", "--model", folder, *files, "--out", str(out), "--steps", "80", *QUICK, *more]
    found = run(*typed, "--weight-rate", "0.1")
    assert found.exit_code == 0, found.output
    assert "model, step 80: target loss" in found.output
    weights = json.loads((out / "weights.json").read_text())
    assert [pathlib.Path(name).name for name in weights] == ["good.jsonl", "turned.jsonl"]
    good, turned = weights.values()
    assert good + turned == pytest.approx(1, abs=1e-6)
    assert good > 0.9
    history = json.loads((out / "history.json").read_text())
    assert history["weights"]["weight of good"][-1] == pytest.approx(good)
    losses = history["model"]["target loss"]
    assert losses[-1] < left * losses[0]
    page = (out / "report.html").read_text()
    assert "Weights of the sources on the way." in page
    assert not (tmp_path / "out.run").exists()
    checkpoint.load(out)


@pytest.mark.slow
def test_wrong_rows_of_one_file_get_small_weights(folder, files, tmp_path):
    """Rows 9 to 16 answer with other names."""
    lines = [line for name in files[1:3] for line in pathlib.Path(name).read_text().splitlines()]
    mixed, out = tmp_path / "mixed.jsonl", tmp_path / "out"
    mixed.write_text("\n".join(lines))
    typed = ["--sources", str(mixed), *files[3:], "--out", str(out), "--weigh", "row", *QUICK]
    more = ["--steps", "80", "--weight-rate", "0.1", "--rank", "0"]
    found = run("mix", "--model", folder, *typed, *more)
    assert found.exit_code == 0, found.output
    (weights,) = json.loads((out / "weights.json").read_text()).values()
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert sum(weights[8:]) < 0.25  # of 0.5; the target has four of the eight names
    assert sum(weights[8:12]) < 0.1 * sum(weights[:4])
    assert "rows with the least weight" in (out / "report.html").read_text()


def given(folder, files, **changes) -> mixing.Session:
    sources, target = files[1:3], files[4]
    told = {"steps": 6, "batch": 4, "log_every": 2, "held_out": 0.0, "rank": 0, "blocks": 1}
    return mixing.load(
        Mix(
            model=pathlib.Path(folder),
            sources=tuple(sources),
            target=pathlib.Path(target),
            out=pathlib.Path("out"),
            **told | changes,
        )
    )


def both(task, folder, press=None) -> Result:
    """The run of the model, or the phase in which Ctrl-C is pressed."""

    def pressed(step, state, row):
        signal.raise_signal(signal.SIGINT)

    learned = mixing.learn(task, folder, callbacks=[pressed] if press == "weights" else [])
    assert learned.result is not None
    if press == "weights":
        return learned.result
    return mixing.train(
        task, learned.weights, folder, callbacks=[pressed] if press == "model" else []
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method.SCALEBIO, Method.DOGE])
def test_a_resumed_run_ends_like_one_that_was_never_interrupted(folder, files, tmp_path, method):
    task = given(folder, files, method=method)
    whole = both(task, None)
    for phase in ("weights", "model"):
        assert both(task, tmp_path / "run", phase).status.outcome is Outcome.INTERRUPTED
    again = both(task, tmp_path / "run")
    assert again.stats.steps == 4
    for a, b in zip(jax.tree.leaves(whole.x), jax.tree.leaves(again.x), strict=True):
        assert jnp.array_equal(a, b)
    assert not jnp.array_equal(whole.x["embed"], task.opened.start["embed"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["uniform", "target"])
def test_a_mixture_that_is_not_learned(folder, files, tmp_path, method):
    out = tmp_path / "out"
    typed = ["mix", "--model", folder, *files, "--out", str(out), "--method", method, *QUICK]
    found = run(*typed, "--steps", "4", "--log-every", "4")
    assert found.exit_code == 0, found.output
    assert (out / "weights.json").exists() == (method == "uniform")
    assert "weights, step" not in found.output


GOOD = '{"prompt": "a?", "completion": " b"}\n'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "bad.jsonl holds no line."),
        (GOOD, "bad.jsonl has one row; at least two different ones are needed."),
        (GOOD * 3, "bad.jsonl has one row, 3 times; at least two different ones are needed."),
        (GOOD + "no json\n", "bad.jsonl, line 2: not JSON"),
        (GOOD + '{"prompt": "a?"}\n', 'bad.jsonl, line 2: "completion" is missing'),
        ("good", "bad.jsonl holds the same rows as"),
        ("target", "bad.jsonl holds the same rows as"),
    ],
)
def test_bad_sources_are_refused_in_a_sentence(folder, files, tmp_path, content, told):
    bad, named = tmp_path / "bad.jsonl", {"good": files[1], "target": files[4]}
    text = pathlib.Path(named[content]).read_text() if content in named else content
    bad.write_text(text)
    out = tmp_path / "out"
    typed = ["--sources", files[1], str(bad), "--target", files[4], "--out", str(out)]
    found = run("mix", "--model", folder, *typed)
    assert found.exit_code == 2
    assert told in found.output
    assert found.output.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda told: told["added_tokens"].append({**told["added_tokens"][0], "id": 400,
                                                   "content": "<new>"}),
         "tokenizer.json has tokens up to 400, but the model's vocabulary has 300."),
        (lambda told: told["model"].pop("vocab"), "tokenizer.json is not one: KeyError 'vocab'."),
        (None, "model has no tokenizer.json."),
    ],
)  # fmt: skip
def test_a_tokenizer_that_does_not_fit_the_model_is_refused(folder, files, tmp_path, change, told):
    other = pathlib.Path(shutil.copytree(folder, tmp_path / "model"))
    text = other / "tokenizer.json"
    if change is None:
        text.unlink()
    else:
        content = json.loads(text.read_text())
        change(content)
        text.write_text(json.dumps(content))
    out = tmp_path / "out"
    found = run("mix", "--model", str(other), *files, "--out", str(out))
    assert found.exit_code == 2
    assert told in found.output
    assert found.output.count("\n") == 1
    assert not out.exists()


def test_the_target_is_no_source(folder, files, tmp_path):
    typed = ["--sources", files[1], files[4], "--target", files[4], "--out", str(tmp_path / "out")]
    found = run("mix", "--model", folder, *typed)
    assert found.exit_code == 2
    assert "target.jsonl holds the same rows as the target" in found.output


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--sources", "a"], "one source needs no weight; give at least two --sources, or weights"),
        (["--weigh", "row", "--method", "doge"], "--weigh has no effect here: it is for --method"),
        (["--sources", "a", "b", "a"], "a is given twice as a source"),
        (["--method", "doge", "--penalty", "2"], "--penalty has no effect here"),
        (["--method", "uniform", "--weight-steps", "2"], "--weight-steps has no effect here"),
        (["--warmup", "5", "--weight-steps", "5"], "warmup is 5, and the weights have 5 steps"),
        (["--blocks", "2"], "--blocks has no effect here: it is for --rank 0."),
    ],
)
def test_a_wrong_use_is_refused(typed, told):
    sources = [] if "--sources" in typed else ["--sources", "a", "b"]
    found = run("mix", "--model", "m", *sources, "--target", "t", "--out", "o", *typed)
    assert found.exit_code == 2
    assert told in found.output


def test_rows_are_drawn_in_proportion_to_the_weights():
    """Of sources of 2, 3 and 5 rows; a source without weight is never drawn."""
    sources = [jnp.full((n, 1), k) for k, n in enumerate((2, 3, 5))]
    draw = mixture.drawn(sources, jnp.array([0.25, 0.0, 0.75]), 10)
    for seed in range(4):
        counts = np.bincount(np.asarray(draw(jax.random.key(seed)))[:, 0], minlength=3)
        assert counts[1] == 0
        assert counts[0] in (2, 3)
    numbered = mixture.drawn([jnp.arange(2.0), jnp.arange(2.0, 5.0)], jnp.ones(2), 64)
    assert set(np.asarray(numbered(jax.random.key(0))).tolist()) == {0, 1, 2, 3, 4}


def test_lisa_moves_the_layers_that_it_draws_and_all_of_the_rest():
    tree = {"embed": jnp.zeros(3), "layers": [{"w": jnp.zeros(2)} for _ in range(5)]}
    ones = jax.tree.map(jnp.ones_like, tree)
    lisa = LISA(SGD(0.5), blocks=2, every=3, seed=1)
    state, moved, seen = lisa.init(tree), tree, []
    step = jax.jit(lambda *arguments: lisa.step(*arguments))
    for k in range(6):
        before = np.array([layer["w"][0] for layer in moved["layers"]])
        moved, state = step(ones, state, moved, jnp.int32(k))
        change = np.array([layer["w"][0] for layer in moved["layers"]]) - before
        assert sorted(change) == [-0.5, -0.5, 0, 0, 0]
        seen.append(tuple(change))
    assert moved["embed"].tolist() == [-3.0] * 3
    assert seen[0] == seen[1] == seen[2]
    assert seen[3] == seen[4] == seen[5]
    assert seen[0] != seen[3]
