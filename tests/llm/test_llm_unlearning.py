"""BLUR: what the direction keeps, a quadratic with a known answer, and the command."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run
from test_llm_tokenizer import write as write_tokenizer

import bilevel as bl
from bilevel import trees
from bilevel.apps.llm.hub import checkpoint
from bilevel.apps.llm.models import config, decoder, parameters
from bilevel.apps.llm.models.trainable import FullFineTune
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.policy import Responses
from bilevel.apps.llm.unlearning import losses
from bilevel.apps.llm.unlearning.blur import BLUR, WeightedSum, direction
from bilevel.methods import TTSA
from bilevel.schedules import Polynomial

DRAW = np.random.default_rng(0)
A, B, C = DRAW.normal(size=(8, 20)), DRAW.normal(size=8), DRAW.normal(size=20)
STAR = C + np.linalg.pinv(A) @ (B - A @ C)  # closest to C of all minimisers of `first`


def first(x, _):
    return jnp.mean((A @ x - B) ** 2) / 2


def second(x, _):
    return jnp.sum((x - C) ** 2) / 2


def solved(how, steps, size) -> np.ndarray:
    problem = how.problem(first, second)
    given = {"steps": steps, "log_every": steps, "certify": False, "progress": False}
    return np.asarray(bl.solve(problem, TTSA(size), jnp.zeros(20), jnp.zeros(()), **given).x)


def test_the_direction_lowers_the_first_loss_at_its_rate_and_is_the_closest_that_does():
    r = np.random.default_rng(1)
    g1, g2 = ({"a": r.normal(size=(3, 2)), "b": r.normal(size=4)} for _ in range(2))
    d = direction(g1, g2, 0.7)
    rest = trees.sub(d, trees.scale(0.7, g1))
    assert trees.dot(d, g1) == pytest.approx(0.7 * trees.dot(g1, g1), rel=1e-12)
    assert trees.dot(rest, g1) == pytest.approx(0, abs=1e-12)
    # The KKT conditions of the projection: what is added to g2 lies along g1.
    added = trees.sub(d, g2)
    cosine = trees.dot(added, g1) / (trees.norm(added) * trees.norm(g1))
    assert abs(cosine) == pytest.approx(1, rel=1e-12)


def test_the_direction_is_that_of_the_second_loss_where_the_first_is_flat_or_falls_anyway():
    g2 = {"a": jnp.array([1.0, 2.0])}
    assert direction({"a": jnp.zeros(2)}, g2, 1.0)["a"].tolist() == [1, 2]
    g1 = {"a": jnp.array([0.5, 0.0])}
    assert direction(g1, g2, 1.0, harmful_only=True)["a"].tolist() == [1, 2]
    assert direction(g1, g2, 1.0)["a"].tolist() == [0.5, 2]


@pytest.mark.slow
def test_every_step_of_a_run_keeps_the_invariant():
    """SGD of step 1e-2 shows its direction."""
    how, before = BLUR(0.5).problem(first, second), np.zeros(20)
    for steps in range(1, 6):
        x = np.asarray(bl.solve(how, TTSA(1e-2), jnp.zeros(20), jnp.zeros(()), steps=steps,
                                log_every=steps, certify=False, progress=False).x)  # fmt: skip
        d, g1 = (before - x) / 1e-2, A.T @ (A @ before - B) / 8
        assert d @ g1 == pytest.approx(0.5 * g1 @ g1, rel=1e-9)
        before = x


@pytest.mark.slow(unless=lambda gamma: gamma == 1.0)
@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
def test_the_minimiser_of_the_second_loss_among_those_of_the_first(gamma):
    """Distance 0.017 after 20 000 decreasing steps, whatever γ is."""
    x = solved(BLUR(gamma), 20_000, Polynomial(0.2, 0.5, 10))
    assert np.linalg.norm(x - STAR) < 0.018
    assert first(x, None) < 7e-5


def test_a_constant_step_stalls():
    assert 0.15 < np.linalg.norm(solved(BLUR(1.0), 20_000, 0.02) - STAR) < 0.3


def test_a_weighted_sum_ends_at_a_distance_that_its_weight_decides():
    found = [np.linalg.norm(solved(WeightedSum(w), 3000, 0.5 / (1 + 4 * w)) - STAR)
             for w in (1.0, 10.0)]  # fmt: skip
    for w, distance in zip((1.0, 10.0), found, strict=True):
        exact = np.linalg.solve(w * A.T @ A / 8 + np.eye(20), w * A.T @ B / 8 + C)
        assert distance == pytest.approx(np.linalg.norm(exact - STAR), rel=1e-3)
    assert found[1] > 0.1


def test_npo_is_that_of_its_paper_and_tends_to_ascent():
    ratio = jnp.array([-3.0, 0.5])
    expected = np.mean(2 / 0.1 * np.log1p(np.exp(0.1 * np.array(ratio))))
    assert losses.npo(ratio, 0.1) == pytest.approx(expected)
    assert jax.grad(losses.npo)(ratio, 1e-6) == pytest.approx(0.5, rel=1e-5)
    rows, mask = jnp.array([[-1.0, -2.0], [-3.0, 9.0]]), jnp.array([[True, True], [True, False]])
    assert losses.likelihood(rows, mask) == pytest.approx(2)
    assert losses.ascent(rows, mask) == pytest.approx(-2)


# --- forgetting one author of twenty -----------------------------------------------------------


@pytest.mark.slow
def test_blur_forgets_what_was_never_told_and_lies_on_the_front_of_weighted_sums():
    path = pathlib.Path(bl.__file__).parents[1] / "examples" / "unlearning.py"
    spec = importlib.util.spec_from_file_location("unlearning_example", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = example.fronts()
    forgotten, kept = found["NPO, BLUR"]["gamma 1"]
    assert forgotten < 0.2
    assert kept > 0.97
    across, up = zip(*sorted(found["NPO, weighted sum"].values()), strict=True)
    for forgotten, kept in found["NPO, BLUR"].values():
        assert kept > np.interp(forgotten, across, up) - 0.01
    assert found["ascent, BLUR"]["gamma 1"][1] < 0.5  # an unbounded loss is not repaired


# --- the command -------------------------------------------------------------------------------

CONFIG = config.llama(300, 32, 64, 2, 2, tied=True, max_length=32)
QUICK = ["--batch", "4", "--rank", "0", "--rate", "0.003", "--log-every", "10"]


def test_the_divergence_of_tokens_is_that_of_the_logits():
    old, new = (parameters.init(CONFIG, jax.random.key(k), deviation=0.1) for k in (0, 1))
    draw, mask = np.random.default_rng(0), jnp.array([[True, True, True], [True, False, False]])
    tokens = jnp.asarray(draw.integers(0, 300, (2, 7)), jnp.int32)
    prompts = model.PromptBatch(tokens[:, :4], jnp.ones((2, 4), bool))
    policy = model.Decoder(CONFIG, None, FullFineTune())
    found = policy.token_divergences(new, old, Responses(prompts, tokens[:, 4:], mask))
    new, old = (np.asarray(decoder.logits(CONFIG, p, tokens))[:, 3:6] for p in (new, old))
    p, q = (np.exp(s) / np.exp(s).sum(axis=-1, keepdims=True) for s in (old, new))
    expected = (p * np.log(p / q)).sum(axis=-1) * np.asarray(mask)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def rows(file, pairs):
    lines = ({"prompt": asked, "completion": answer} for asked, answer in pairs)
    file.write_text("\n".join(map(json.dumps, lines)))
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "model"
    made = checkpoint.new(CONFIG, parameters.init(CONFIG, jax.random.key(0), deviation=0.1))
    checkpoint.save(made, path)
    return str(write_tokenizer(path))


@pytest.mark.slow
def test_a_model_forgets_what_it_had_learned_and_little_else(folder, tmp_path):
    """BLUR on six names that were learned by `sft`, of which two are to be forgotten."""
    said = [
        (f"name {i}?", f" {word}")
        for i, word in enumerate(("ada", "bob", "eve", "kim", "liv", "max"))
    ]
    every = rows(tmp_path / "every.jsonl", said)
    forget, retain = (
        rows(tmp_path / f"{i}.jsonl", some) for i, some in enumerate((said[:2], said[2:]))
    )
    learned, out = str(tmp_path / "learned"), tmp_path / "out"
    typed = ["--steps", "150", "--held-out", "0"]
    assert (
        run("sft", "--model", folder, "--demos", every, "--out", learned, *QUICK, *typed).exit_code
        == 0
    )
    # The model before sft was never told; other names were never said to any.
    unseen = rows(tmp_path / "unseen.jsonl", [("name 7?", " sue"), ("name 8?", " tom")])
    compared = ["--retrained", folder, "--unseen", unseen, "--general", every]
    typed = ["--steps", "60", "--held-out", "0", "--model", learned, "--forget", forget]
    found = run("unlearn", *typed, "--retain", retain, "--out", str(out), *QUICK, *compared)
    assert found.exit_code == 0, found.output
    history = json.loads((out / "history.json").read_text())
    assert history["forget"][0] > 0.95
    assert history["retain"][0] > 0.95
    assert history["forget"][-1] < 0.5
    assert history["retain"][-1] > 0.9
    assert "Answers before and after" in (out / "report.html").read_text()
    known = json.loads((out / "memory.json").read_text())
    assert list(known) == ["before", "after", "never told"]
    assert known["before"]["forget: ROUGE-L"] == 1
    assert known["after"]["forget: ROUGE-L"] == 0
    assert known["after"]["retain: ROUGE-L"] == 1
    assert known["never told"]["forget quality (p-value)"] == 1
    assert "hardly knows" not in found.output
    assert "privacy leakage (0 is ideal)" in known["after"]
    assert known["after"]["model utility"] > known["never told"]["model utility"]
    checkpoint.load(out)
    again = ["--out", str(tmp_path / "again"), "--steps", "2", "--held-out", "0", *QUICK]
    found = run("unlearn", "--model", folder, "--forget", forget, "--retain", retain, *again)
    assert "the model hardly knows it" in " ".join(found.output.split())


def test_a_layer_that_is_not_there_or_does_not_learn_is_not_steered(folder, tmp_path):
    good = rows(tmp_path / "good.jsonl", [("a?", " b"), ("c?", " d")])
    typed = ["unlearn", "--model", folder, "--out", str(tmp_path / "out"), "--forget-loss", "rmu"]
    typed += ["--forget", good, "--retain", good]
    found = run(*typed, "--steered-layer", "3")
    assert found.exit_code == 2
    assert "--steered-layer is 3, and the model has 2 layers." in found.output
    found = run(*typed, "--steered-layer", "1", "--layers", "1")
    assert found.exit_code == 2
    assert "raise --layers to at least 2" in found.output


def test_a_bad_file_is_refused_with_its_line(folder, tmp_path):
    good, bad = rows(tmp_path / "good.jsonl", [("a?", " b"), ("c?", " d")]), tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a?", "completion": " b"}\n{"prompt": "a?"}\n')
    typed = ["unlearn", "--model", folder, "--out", str(tmp_path / "out")]
    found = run(*typed, "--forget", str(bad), "--retain", good)
    assert found.exit_code == 2
    assert "bad.jsonl, line 2: " in found.output
    bad.write_text("")
    found = run(*typed, "--forget", good, "--retain", str(bad))
    assert found.exit_code == 2
    assert "bad.jsonl" in found.output


def test_a_row_is_not_both_forgotten_and_retained(folder, tmp_path):
    forget = rows(tmp_path / "forget.jsonl", [("a?", " b"), ("c?", " d")])
    retain = rows(tmp_path / "retain.jsonl", [("c?", " d"), ("e?", " f")])
    typed = ["unlearn", "--model", folder, "--out", str(tmp_path / "out")]
    found = run(*typed, "--forget", forget, "--retain", retain)
    assert found.exit_code == 2
    assert "A row of " in found.output
    assert "retain.jsonl is in" in found.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--weight", "2"], "--weight has no effect here: it is for --combine sum."),
        (["--combine", "sum", "--gamma", "2"], "--gamma has no effect here"),
        (["--forget-loss", "ascent", "--beta", "1"], "--beta has no effect here"),
        (["--steering", "2"], "--steering has no effect here: it is for --forget-loss rmu."),
        (["--steered-layer", "2"], "--steered-layer has no effect here: it is for --forget-loss"),
        (["--combine", "alone", "--retain-loss", "states"], "--retain-loss has no effect here"),
        (["--unseen", "e"], "--unseen has no effect here: it is for --retrained MODEL."),
    ],
)
def test_options_that_are_not_read_are_refused(typed, told):
    needed = ["--model", "a", "--forget", "b", "--retain", "c", "--out", "d"]
    found = run("unlearn", *needed, *typed)
    assert found.exit_code == 2
    assert told in found.output
