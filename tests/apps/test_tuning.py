"""Penalties by cross-validation: exact hypergradients, honest scores, refusals in a sentence."""

import json
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run

import bilevel as bl
from bilevel import report
from bilevel.apps import tuning
from bilevel.apps.tuning import judge, pictures, two_levels
from bilevel.apps.tuning import run as command


def a_table(rows=24, d=3, seed=0):
    draw = np.random.default_rng(seed)
    A = draw.normal(size=(rows, d))
    return tuning.Rows(A, A @ [1.0, -2, 0][:d] + 1 + 0.5 * draw.normal(size=rows))


def test_the_hypergradient_of_ridge_is_the_closed_form():
    """`d/dx_j = − mean over folds of exp(x_j) w_j (H⁻¹ ∇f)_j`."""
    rows, x = a_table(), np.array([-1.0, 0.5, -3.0])
    folds = tuning.make_folds(rows.target, 4)
    A = np.c_[rows.features, np.ones(24)]
    ys, expected = [], np.zeros(3)
    for held_out, train in zip(*folds, strict=True):
        H = A.T @ (train[:, None] * A) + np.diag([*np.exp(x), 0])
        y = np.linalg.solve(H, A.T @ (train * rows.target))
        v = np.linalg.solve(H, A.T @ (held_out * (A @ y - rows.target)))
        expected -= np.exp(x) * y[:3] * v[:3] / 4
        ys.append(y)
    ys = np.array(ys)
    y = {"weights": jnp.asarray(ys[:, :3, None]), "bias": jnp.asarray(ys[:, 3:])}
    problem = tuning.problem(tuning.squared, rows, tuning.per_feature(3), 4)
    batch = bl.Batch(*map(jnp.asarray, folds))
    at = jax.jit(lambda x, y: bl.hypergrad.implicit(problem, x, y, batch, linear=bl.linear.Dense()))
    h = at({"l2": jnp.asarray(x[:, None])}, y)
    np.testing.assert_allclose(np.ravel(h.grad["l2"]), expected, atol=1e-13)


def test_coefficients_share_penalties_by_feature_and_by_class():
    w = np.random.default_rng(0).normal(size=(2, 3, 2))
    sharing = tuning.Sharing(np.array([0, 1, 0]), np.array([0, 1]))
    assert sharing.shape == (2, 2)
    x = {"l2": jnp.array([[0.1, 0.2], [0.3, 0.4]]), "l1": jnp.array([[-1.0, -2], [0, 1]])}
    ridge, lasso = (np.exp(np.asarray(x[kind]))[[0, 1, 0]] for kind in ("l2", "l1"))
    expected = (ridge * w**2).sum() / 2 + (lasso * np.sqrt(w**2 + 1e-4)).sum()
    args = *map(jnp.asarray, sharing), jnp.asarray(1e-2)
    np.testing.assert_allclose(two_levels.penalty(*args, x, jnp.asarray(w)), expected, rtol=1e-13)


def test_each_row_is_held_out_once_and_each_class_is_in_every_fold():
    labels = np.repeat([0, 1, 2], [50, 10, 5])
    folds = tuning.make_folds(labels, 5)
    held_out, train = folds.validation > 0, folds.train > 0
    assert (held_out.sum(0) == 1).all()
    assert (held_out ^ train).all()
    for k in range(5):
        assert np.bincount(labels[held_out[k]]).tolist() == [10, 2, 1]
    np.testing.assert_allclose([folds.validation.sum(1), folds.train.sum(1)], 1, rtol=1e-14)
    assert tuning.make_folds(labels, 1).validation.astype(bool).sum() == 22


@pytest.mark.slow
def test_a_loss_of_your_own_and_the_elastic_net():
    """The descent starts at the best common penalty, and every step lowers the upper loss."""
    rows = a_table(60)

    def pseudo_huber(scores, target):
        return jnp.sqrt(1 + (scores[:, 0] - target) ** 2) - 1

    tuned = tuning.tune(rows, pseudo_huber, tuning.per_feature(3), elastic=True, steps=20, spread=3)
    assert set(tuned.penalties) == {"l2", "l1"}
    assert tuned.validation < tuned.curve.min()


@pytest.mark.slow
def test_where_few_features_matter_many_penalties_beat_one_and_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    draw = np.random.default_rng(0)
    A = draw.normal(size=(1100, 30))
    b = A[:, :3] @ [2.0, -1.5, 1.0] + draw.normal(size=1100)
    train, test = tuning.Rows(A[:100], b[:100]), tuning.Rows(A[100:], b[100:])
    each, loss = tuning.per_feature(30), tuning.squared
    tuned = tuning.tune(train, loss, each, spread=3)
    penalties = np.ravel(tuned.penalties["l2"])
    assert penalties[:3].max() < penalties[3:].min()
    ours, one = (
        np.asarray(
            tuning.losses_of(tuning.squared, tuning.fit(train, tuning.squared, each, p), test)
        )
        for p in (tuned.penalties, {"l2": np.full((30, 1), tuned.common)})
    )
    ridge = linear.RidgeCV(np.logspace(-3, 4, 30), cv=5).fit(*train)
    for theirs in (one, (ridge.predict(test.features) - test.target) ** 2 / 2):
        apart = report.mean_and_error(ours - theirs)
        assert apart.mean + 3 * apart.error < 0


@pytest.mark.slow
def test_one_validation_set_is_overfitted_and_the_command_says_so(tmp_path):
    """Thirty free penalties on 143 rows of breast cancer."""
    datasets = pytest.importorskip("sklearn.datasets")
    X, labels = datasets.load_breast_cancer(return_X_y=True)
    lines = [",".join([*(f"a{i}" for i in range(30)), "kind"])]
    lines += [",".join([*map(str, row), "mb"[label]]) for row, label in zip(X, labels, strict=True)]
    path = tmp_path / "cancer.csv"
    path.write_text("\n".join(lines))
    words = "--out", str(tmp_path / "out.html"), "--json", "--folds", "1", "--spread", "30"
    found = json.loads(run("tune", str(path), "--target", "kind", *words).output)
    assert len(found["penalties"]["l2"]) == 30
    assert found["validation"][judge.EACH] < 0.8 * found["validation"][judge.ALL]
    assert found["test"][judge.EACH]["mean"] > found["test"][judge.ALL]["mean"]
    assert "30 penalties are chosen by one set of 143 validation rows" in found["warnings"][0]
    assert "The penalties overfit the validation rows" in found["warnings"][1]
    assert "overfit" in (tmp_path / "out.html").read_text()


# --- the command on what people bring -----------------------------------------------------------

GOOD = "a,b,y\n" + "".join(f"{i % 5},{i * i % 7},{i % 3 + 0.5 * i}\n" for i in range(40))


def tune(tmp_path, content, *words):
    path = tmp_path / "data.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return run("tune", str(path), "--target", "y", "--out", str(tmp_path / "out.html"), *words)


@pytest.mark.parametrize(
    ("content", "words", "told"),
    [
        (GOOD + "1,,2\n", (), "line 42, column 'b': the value is missing; a finite number"),
        (GOOD + "1,x,2\n", (), "line 42, column 'b': 'x'; a finite number is needed. Give "
         "--categorical b if it holds labels"),
        ("a,y\n1,u\n2,u\n3,u\n", (), "every row of column 'y' is 'u'; at least two classes"),
        ("a,y\n1,1.5\n2,1.5\n3,1.5\n", ("--model", "ridge"), "every row of column 'y' is 1.5"),
        ("a,y\n1,1.5\n2,3\n3,2\n4,1\n", ("--test", "0.5"), "2 rows to train on are too few for 5"),
        (GOOD, ("--ignore", "c"), "has no column 'c'; it has 'a', 'b', 'y'"),
        (GOOD.replace(",y", ",z"), (), "has no column 'y'"),
        ("", (), "is empty"),
        ("a,y\n", (), "has names of columns, but no row"),
        (GOOD.encode("utf-16"), (), "zero bytes, as no text in UTF-8 does"),
        ("a,y\n1,\xfc\n".encode("latin-1"), (), "line 2: byte 0xfc is not UTF-8"),
        (GOOD, ("--ignore", "a", "--ignore", "b"), "has no column beside 'y' to learn from"),
        (GOOD, ("--per", "class"), "--per class needs --model softmax"),
        (GOOD, ("--per", "group", "--group", "a,c"), "'c' is no feature of"),
        ("a,y\n1,u\n2,v\n3,w\n4,u\n5,v\n6,w\n", ("--model", "logistic"), "has 3 classes; logistic"),
        ("a,y\n" + "1,u\n2,v\n" * 9 + "3,w\n", (), "class 'w' has"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_in_a_sentence_and_nothing_is_written(
    tmp_path, content, words, told
):
    found = tune(tmp_path, content, *words)
    assert found.exit_code == 2
    assert told in found.output
    assert found.output.count("\n") == 1
    assert not (tmp_path / "out.html").exists()


def test_wrong_options_are_wrong_usage(tmp_path):
    for words, told in {
        ("--folds", "0"): "--folds is 0; a whole number from 1 to 100",
        ("--group", "a,b"): "give --per group, too",
        ("--model", "tree"): "one of auto, ridge",
    }.items():
        found = tune(tmp_path, GOOD, *words)
        assert found.exit_code == 2
        assert told in found.output


@pytest.mark.slow
def test_labels_become_a_group_with_one_penalty(tmp_path):
    rows = [f"{'xyz'[i % 3]},{i % 7},{(i * 37) % 11},{[2, -1, 0][i % 3] + (i * 13) % 5 / 9}"
            for i in range(60)]  # fmt: skip
    content = "\n".join(["kind,a,b,y", *rows])
    words = "--categorical", "kind", "--per", "group", "--group", "a,b", "--json", "--steps", "5"
    found = json.loads(tune(tmp_path, content, *words).output)
    assert list(found["penalties"]["l2"]) == ["kind", "a+b"]
    assert found["test"][judge.EACH]["mean"] < 0.3
    assert "RidgeCV" in found["test"]
    page = (tmp_path / "out.html").read_text()
    assert "kind=x" in page
    assert "Better than" in page or "No difference from" in page


def test_an_axis_of_penalties_does_not_blow_up_a_few_percent():
    for penalties in ([0.022, 0.0219], [0.022]):
        low, high = pictures._around(penalties)
        assert high / low == pytest.approx(10, rel=0.01)
        assert np.sqrt(low * high) == pytest.approx(0.022, rel=0.01)
    low, high = pictures._around([1e-3, 1.0, 0.1])
    assert 5e-4 < low < 1e-3
    assert 1 < high < 2


def ended(outcome):
    """What `tune` returns, with a run of two steps."""
    result = SimpleNamespace(
        history={"hypergrad_norm": np.array([0.5, 0.25])},
        stats=SimpleNamespace(steps=2),
        status=SimpleNamespace(outcome=outcome),
    )
    folds = tuning.make_folds(np.arange(24.0), 4)
    l2 = np.array([[0.5], [2.0]])
    return tuning.Tuned({"l2": l2}, 1.0, np.zeros(27), 0.25, folds, cast(Any, result))


def test_printed_penalties_leave_the_folds_out():
    shown = repr(ended(bl.Outcome.FINISHED))
    assert shown.startswith("Tuned(l2=[0.5 2. ], common=1, validation=0.25; curve, folds and ")
    assert "array" not in shown.split("folds and")[0]


@pytest.mark.parametrize(("outcome", "told"), [
    (bl.Outcome.STALLED, "Rounding leaves no further step that is certain to lower the loss."),
    (bl.Outcome.FINISHED, "Finished."),
])  # fmt: skip
def test_the_report_says_why_the_descent_ended(outcome, told):
    assert command._ended(ended(outcome)) == (
        "2 steps from the best common penalty. "
        f"The norm of the hypergradient fell from 0.5 to 0.25. {told}"
    )
