"""Reweighting four sources: two clean, one of the opposite sign, one of noise (spec 5.5)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run

import bilevel as bl
from bilevel.apps import reweight
from bilevel.apps.reweight.two_levels import everything
from bilevel.losses import Rows


def four_sources(seed: int = 0) -> tuple[reweight.Sources, Rows]:
    draw = np.random.default_rng(seed)
    truth = draw.normal(size=10)
    A, V = draw.normal(size=(800, 10)), draw.normal(size=(100, 10))
    source = np.repeat(np.arange(4), 200)
    b = np.choose(source, [A @ truth, A @ truth, -A @ truth, np.zeros(800)])
    b = b + np.choose(source, [0.1, 0.1, 0.1, 5.0]) * draw.normal(size=800)
    return reweight.Sources(Rows(A, b), source), Rows(V, V @ truth + 0.1 * draw.normal(size=100))


SOURCES, VALIDATION = four_sources()
DECAY = 1e-3


def normal_equations(weights, rows=SOURCES.rows, extra=(0.0, 0.0)):
    """`H` and `r` of the weighted ridge problem with a bias, plus those of another loss."""
    A = np.c_[rows.features, np.ones(len(rows.target))]
    H = A.T @ (weights[:, None] * A) + DECAY * np.eye(11) + extra[0]
    return H, A.T @ (weights * rows.target) + extra[1]


def exact(x):
    """y*, the hypergradient, and ∇f at y*, in NumPy."""
    p = np.exp(x) / np.exp(x).sum()
    shares = np.eye(4)[SOURCES.source].T / 200
    H, r = normal_equations(p @ shares)
    y = np.linalg.solve(H, r)
    F, c = normal_equations(np.full(100, 0.01), VALIDATION)
    F = F - DECAY * np.eye(11)
    v = np.linalg.solve(H, F @ y - c)
    A = np.c_[SOURCES.rows.features, np.ones(800)]
    slopes = (shares * (A @ y - SOURCES.rows.target)) @ A  # of the loss of each source
    return y, -p * (slopes @ v - p @ slopes @ v), (F, c, H, r)


def tree(y):
    return {"weights": jnp.asarray(y[:10, None]), "bias": jnp.asarray(y[10:])}


def test_the_hypergradient_is_the_closed_form_and_tells_good_sources_from_bad():
    y, expected, _ = exact(np.zeros(4))
    problem = reweight.problem(reweight.squared, decay=DECAY)
    batch = bl.Batch(Rows(*map(jnp.asarray, VALIDATION)), everything(SOURCES))
    at = jax.jit(lambda x, y: bl.hypergrad.implicit(problem, x, y, batch, linear=bl.linear.Dense()))
    h = at(jnp.zeros(4), tree(y))
    np.testing.assert_allclose(h.grad, expected, atol=1e-12)
    assert np.sign(expected).tolist() == [-1, -1, 1, 1]


def test_the_error_of_the_penalty_gradient_falls_as_one_over_the_penalty():
    z, expected, (F, c, H, r) = exact(np.zeros(4))
    problem = reweight.problem(reweight.squared, decay=DECAY)
    slope = jax.jit(lambda y: jax.grad(problem.lower)(jnp.zeros(4), y, everything(SOURCES)))
    errors = []
    for penalty in (1, 10, 100, 1000):
        y = np.linalg.solve(H + F / penalty, r + c / penalty)  # minimises f + penalty g
        found = penalty * (slope(tree(y)) - slope(tree(z)))
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    times = np.array(errors) * [1, 10, 100, 1000]
    np.testing.assert_allclose(times[2:], times[3], rtol=0.02)
    assert errors[0] > 0.3


def test_scalebio_keeps_both_good_sources_for_every_penalty():
    """One program, mapped over the penalties."""
    problem = reweight.problem(reweight.squared)
    data = bl.Data(
        Rows(*map(jnp.asarray, VALIDATION)),
        reweight.stratified(SOURCES, 16),
        batch_size=bl.Batch(64, None),
    )

    def learned(penalty):
        method = reweight.method(penalty)
        state = method.init(problem, jnp.zeros(4), tree(np.zeros(11)))
        state, _ = bl.run(problem, method, state, data=data, key=jax.random.key(0), steps=3000)
        batch = Rows(*map(jnp.asarray, VALIDATION))
        return jax.nn.softmax(state.x), problem.upper(state.x, state.y, batch)

    found, loss = jax.jit(jax.vmap(learned))(jnp.array([1.0, 10.0, 100.0]))
    found = np.asarray(found)
    assert np.max(loss) < 0.01
    uniform = exact(np.zeros(4))[0]
    A, b = VALIDATION
    assert ((A @ uniform[:10] + uniform[10] - b) ** 2).mean() / 2 > 1
    assert (found[:, 2:] < 0.02).all()
    assert (found[:, :2].max(1) / found[:, :2].min(1) < 1.3).all()


def test_doge_collapses_on_one_of_two_good_sources():
    found = reweight.doge(SOURCES, VALIDATION, reweight.squared)
    assert found.last[2:].max() < 0.02
    assert found.last[:2].max() > 0.9


# --- the command --------------------------------------------------------------------------------


def write(path, rows, source=None):
    lines = ["a,b,y" + (",where" if source is not None else "")]
    for i, row in enumerate(rows):
        lines.append(",".join(map(str, row)) + ("" if source is None else f",{source[i]}"))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def files(tmp_path):
    draw = np.random.default_rng(0)
    A = draw.normal(size=(60, 2))
    rows = np.c_[A, A @ [1.0, 2.0] + 0.1 * draw.normal(size=60)]
    rows[20:40, 2] *= -1
    train = write(tmp_path / "train.csv", rows[:40], ["good"] * 20 + ["flipped"] * 20)
    return train, write(tmp_path / "trusted.csv", rows[40:])


def reweigh(files, *words, out):
    train, trusted = files
    return run(
        "reweight", str(train), "--target", "y", "--source", "where", "--validation", str(trusted),
        "--out", str(out), *words,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_weighs_the_sources_and_writes_a_report(files, tmp_path):
    out = tmp_path / "out.html"
    found = reweigh(files, "--steps", "1500", "--json", out=out)
    assert found.exit_code == 0
    told = json.loads(found.output)
    assert told["weights"]["ScaleBiO"]["good"] > 0.95
    assert told["test"]["ScaleBiO"]["mean"] < told["test"]["uniform"]["mean"]
    assert "flipped" in out.read_text()


@pytest.mark.parametrize(
    ("train", "trusted", "told"),
    [
        ("a,y,where\n1,2,n\n2,3,n\n", "a,y\n1,2\n", "column 'where' is 'n'; at least two sources"),
        ("a,y\n1,2\n2,3\n", "a,y\n1,2\n", "has no column 'where'; it has 'a', 'y'"),
        ("a,y,where\n1,2,n\n2,3.5,s\n", "y\n1\n", "lacks 'a', which"),
        ("a,y,where\n1,2,n\nx,3.5,s\n", "a,y\n1,2\n", "line 3, column 'a': 'x'; a finite number"),
        ("a,y,where\n1,2,n\n2,,s\n", "a,y\n1,2\n", "line 3, column 'y': the value is missing"),
        ("a,y,where\n1,2.5,n\n2,3.5,s\n", "a,y\n1,2\n", "has 1 rows; at least two to learn by"),
        (
            "a,y,where\n1,u,n\n2,v,s\n",
            "a,y\n1,w\n",
            "has classes 'w', which the training",
        ),
        ("", "a,y\n1,2\n", "is empty"),
        ("y,where\n1,n\n2,s\n", "y\n1\n", "has no column to learn from"),
    ],
)
def test_bad_tables_are_refused_in_a_sentence_and_nothing_is_written(
    tmp_path, train, trusted, told
):
    files = tmp_path / "train.csv", tmp_path / "trusted.csv"
    for path, content in zip(files, (train, trusted), strict=True):
        path.write_text(content)
    found = reweigh(files, out=tmp_path / "out.html")
    assert found.exit_code == 2
    assert told in found.output
    assert found.output.count("\n") == 1
    assert not (tmp_path / "out.html").exists()
