"""`bl.solve` without a method: the choice, the global search, its certificate, the benchmark."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run

import bilevel as bl
from bilevel.cli import textbook as command
from bilevel.driver import FollowerCertificate
from bilevel.global_search import check_small, solve_small
from bilevel.global_search.follower import Follower, Region
from bilevel.global_search.functions import LOWER, UPPER, Functions
from bilevel.global_search.interior import minimise
from bilevel.global_search.leader import _System, sensitivity
from bilevel.methods.base import Unsupported
from bilevel.problems import referee, textbook
from bilevel.selection import choose as choices

X, Y = jnp.zeros(2), jnp.zeros(3)


def smooth(x, y, batch):
    return jnp.sum((y - 1) ** 2) + jnp.sum(x**2)


def follows(x, y, batch):
    return jnp.sum((y - x[0]) ** 2)


def entry(**changes):
    """Minimise x² + y² where y minimises −y over [−1, 1], so that y = 1; the answer is 1."""
    start = {
        "name": "small", "nx": 1, "ny": 1, "upper": "x[0]**2 + y[0]**2", "lower": "-y[0]",
        "upper_ineq": ["x[0] + 1", "1 - x[0]"], "upper_eq": [],
        "lower_ineq": ["y[0] + 1.0", "1.0 - y[0]"], "lower_eq": [], "x_start": [0.5],
        "y_start": [0.5], "upper_best": 1.0, "status": "global",
    }  # fmt: skip
    return start | changes


# min (x − 1/4)² + y² with y minimising y³/3 − x y on [−1, 1]; Mitsos and Barton's 3.14.
CONVEXLESS = entry(
    name="mb_2007_14",
    upper="(x[0] - 0.25)**2 + y[0]**2",
    lower="y[0]**3/3 - x[0]*y[0]",
    upper_best=0.25,
)
# y = 0 always satisfies the follower's conditions, and for x < 1/2 it likes y = ±1 better.
TRAP = entry(
    name="trap",
    upper="y[0]**2 + (x[0] - 0.3)**2",
    lower="x[0]*y[0]**2 - 0.5*y[0]**4",
    upper_best=0.04,
)


def proof_of(result: bl.Result) -> FollowerCertificate:
    assert isinstance(result.certificate, FollowerCertificate)
    return result.certificate


# --- the choice ---------------------------------------------------------------------------------


def chosen(problem, x=X, y=Y, **given):
    return choices.choose(problem, x, y, **given)


def test_smooth_and_free_gets_maid():
    for upper_set in (None, bl.sets.Box(-1, 1)):
        choice = chosen(bl.Problem(smooth, follows, upper_set=upper_set))
        assert isinstance(choice.method, bl.methods.MAID)
        assert "strongly convex at the start" in choice.why


@pytest.mark.parametrize(
    "problem",
    [
        bl.Problem(smooth, follows, lower_set=bl.sets.Coupled(lambda x, y: y - x[0])),
        bl.Problem(smooth, follows, upper_set=bl.sets.Coupled(lambda x, y: y - x[0])),
        bl.Problem(smooth, lambda x, y, b: jnp.sum(jnp.cos(y - x[0]) * jnp.array([1.0, 2, 3]))),
        bl.Problem(smooth, lambda x, y, b: jnp.sum(y**4) * x[0] ** 2),
        bl.Problem(lambda x, y, b: jnp.sum(x**2), follows),
    ],
    ids=["coupled lower", "coupled upper", "nonconvex", "flat", "upper without y"],
)
def test_small_and_anything_else_is_searched(problem):
    choice = chosen(problem)
    assert choice.method is None
    assert "global search for small problems" in choice.why
    assert "5 variables" in choice.why


ROWS = np.arange(8.0)[:, None] / 8


def noisy():
    return bl.Problem(
        lambda x, y, b: jnp.mean((y[0] - b) ** 2) + jnp.sum(x**2),
        lambda x, y, b: jnp.sum((y - x[0] - jnp.mean(b)) ** 2),
    )


@pytest.mark.slow
def test_batches_get_a_tuned_soba():
    data = bl.Data(upper=ROWS, lower=ROWS, batch_size=4)
    choice = chosen(noisy(), data=data)
    assert isinstance(choice.method, bl.methods.SOBA)
    assert "bl.tune" in choice.why


@pytest.mark.slow
def test_batches_and_a_flat_lower_loss_get_a_race():
    flat = bl.Problem(
        lambda x, y, b: jnp.mean((y[0] - b) ** 2) + jnp.sum(x**2) + jnp.sum(y[1:] ** 2),
        lambda x, y, b: (y[0] + y[1] - x[0] - jnp.mean(b)) ** 2,
    )
    choice = chosen(flat, data=bl.Data(upper=ROWS, lower=ROWS, batch_size=4))
    assert choice.method is not None
    assert "SOBA cannot be tuned" in choice.why
    assert choice.lags


@pytest.mark.slow
def test_the_answer_after_a_race_is_solved_for():
    n = 30
    rates = jnp.linspace(0.1, 1.0, n)
    problem = bl.Problem(
        lambda x, y, b: jnp.mean((x - 1) ** 2 + (y - 1) ** 2),
        lambda x, y, b: jnp.sum(rates * (y - x) ** 2) / 2,
        hypergradient=lambda x, y, b: 2 * (x + y - 2) / n,
    )
    result = bl.solve(problem, x0=jnp.zeros(n), y0=jnp.zeros(n), steps=100)
    assert "in a race" in result.status.advice
    assert jnp.allclose(result.y, result.x, atol=1e-6)
    assert isinstance(result.certificate, bl.certificates.Certificate)
    assert result.certificate.tracking_error < 1e-6


def run_after_a_race(monkeypatch, step, second):
    """`y* = x` and `f = (y − 1)²/2`, so x is multiplied by `1 − step`, seen from 1, a step."""
    problem = bl.Problem(
        lambda x, y, b: jnp.sum((y - 1) ** 2) / 2,
        lambda x, y, b: jnp.sum((y - x) ** 2) / 2,
        hypergradient=lambda x, y, b: y - 1,
    )

    def score(x, y):
        return float(jnp.sum((x - 1) ** 2) / 2)

    other = bl.methods.BSA(second, 0.9, lower_steps=1) if second else None
    raced = choices.Raced(other, start=0.5, reached=0.1, score=score)
    winner = bl.methods.BSA(step, 0.9, lower_steps=1)
    choice = choices.Choice(winner, "Chose BSA", lags=True, raced=raced)
    monkeypatch.setattr("bilevel.selection.front_door.choose", lambda *_, **__: choice)
    options = {"steps": 20, "certify": False, "progress": False}
    return bl.solve(problem, x0=jnp.zeros(1), y0=jnp.zeros(1), **options)


def test_a_run_that_loses_what_the_race_gained_is_followed_by_the_second(monkeypatch):
    result = run_after_a_race(monkeypatch, 2.5, 0.5)
    assert abs(float(result.x[0]) - 1) < 1e-3
    assert result.status.ok
    assert "BSA, the second, at" in result.status.advice
    assert "which is kept" in result.status.advice


def test_a_run_that_ends_worse_than_it_began_has_stalled(monkeypatch):
    result = run_after_a_race(monkeypatch, 2.5, None)
    assert abs(float(result.x[0]) - 1) > 1
    assert result.status.outcome is bl.Outcome.STALLED
    assert "fell from 0.5 to 0.1" in result.status.advice
    assert "worse than the start" in result.status.advice


def test_a_run_that_keeps_what_the_race_gained_is_alone(monkeypatch):
    result = run_after_a_race(monkeypatch, 0.5, 2.5)
    assert abs(float(result.x[0]) - 1) < 1e-3
    assert "second" not in result.status.advice


def test_batches_without_a_choice_get_a_reason():
    stream = bl.Data(upper=iter([ROWS]), lower=iter([ROWS]))
    with pytest.raises(Unsupported, match=r"cannot be tuned.*Give a method"):
        bl.solve(noisy(), x0=X, y0=Y, data=stream)


def test_what_belongs_to_a_method_is_refused():
    boxed = bl.Problem(smooth, follows, lower_set=bl.sets.Box(0, 1))
    with pytest.raises(ValueError, match="metrics would go to a method"):
        bl.solve(boxed, x0=X, y0=Y, metrics={"a": lambda x, y: 0.0})
    with pytest.raises(ValueError, match="state belongs to a method"):
        bl.solve(boxed, state=(1, 2))
    with pytest.raises(ValueError, match="y0 is missing"):
        bl.solve(boxed, x0=X)
    with pytest.raises(TypeError, match=r"bl.Problem\(upper, lower\) is needed"):
        bl.solve("no problem", x0=X, y0=Y)  # pyright: ignore
    with pytest.raises(TypeError, match="scalar is needed"):
        bl.solve(bl.Problem(lambda x, y, b: y, follows), x0=X, y0=Y)


# --- the blocks ---------------------------------------------------------------------------------


def functions(text) -> Functions:
    book = textbook.read(text)
    return Functions(book.problem, book.x0, book.y0)


def test_functions_are_those_of_the_problem_and_simplified():
    text = entry(
        upper="x[0]*y[0]**2",
        lower="exp(x[0]*y[0])",
        lower_ineq=["y[0] - x[0]", "x[0] - y[0]", "1 - y[0]", "1.0 - y[0]"],
        lower_eq=["y[0]**2 - 1"],
    )
    f = functions(text)
    assert (len(f.G), len(f.H), len(f.g), len(f.h)) == (2, 0, 1, 2)
    z, w = np.array([[0.3, 0.7]]), f.weights(1)
    w[0, UPPER] = 2.0 * f.units[UPPER]  # losses are divided by their units
    c, J, W = f(z, w)
    assert c[0, UPPER] * f.units[UPPER] == pytest.approx(0.3 * 0.49)
    assert J[0, LOWER] * f.units[LOWER] == pytest.approx(np.exp(0.21) * np.array([0.7, 0.3]))
    assert W[0] == pytest.approx(2 * np.array([[0, 1.4], [1.4, 0.6]]))
    many = f(np.repeat(z, 300, 0))
    assert many.c.shape[0] == 300
    assert np.all(many.c == many.c[0])


def test_an_upper_set_of_several_kinds():
    upper = bl.sets.Box(-1, np.inf), bl.sets.Coupled(lambda x, y: jnp.sum(x) - y)
    f = Functions(bl.Problem(smooth, follows, upper_set=upper), X, Y)
    assert len(f.G) == 2 + 3  # the open sides are left out


def test_the_interior_point_method_meets_a_quadratic_programs_solution():
    text = entry(lower="(y[0] - 2)**2 + (y[1] + x[0])**2", ny=2, y_start=[0.0, 0.0],
                 lower_ineq=["1 - y[0]"], lower_eq=["y[0] + y[1] - 0.5"])  # fmt: skip
    f = functions(text)
    z = np.array([[0.0, 5.0, -3.0], [0.5, 0.0, 0.0]])
    found = minimise(f, z, slice(1, None), f.g, f.h, cost=LOWER)
    # Along y1 = 0.5 − y0 the slope vanishes at y0 = 1.25 + x/2, beyond the bound.
    assert found.z == pytest.approx(np.array([[0.0, 1.0, -0.5], [0.5, 1.0, -0.5]]), abs=1e-7)
    assert np.all(found.error < 1e-7)
    J = f(found.z).J
    slopes = J[:, LOWER, 1:] + found.dual * J[:, f.g[0], 1:] + found.force * J[:, f.h[0], 1:]
    assert slopes == pytest.approx(0, abs=1e-6)


def test_the_systems_derivatives_are_those_of_its_values():
    f = functions(entry(lower="sin(y[0])*x[0] + y[0]**4", lower_ineq=["1 - y[0] - x[0]**2"]))
    system = _System(f, f.z0, ())
    v = np.array([0.3, 0.4, 0.8])
    for value, slope in ((1, 2), (3, 4)):
        shift = 1e-6 * np.eye(3)
        away = [
            np.asarray(system._of(v + e)[value]) - np.asarray(system._of(v - e)[value])
            for e in shift
        ]
        assert np.stack(away, 1) / 2e-6 == pytest.approx(system._of(v)[slope], abs=1e-6)


def test_the_followers_answer_moves_as_told():
    f = functions(entry(lower="(y[0] - x[0]**2)**2 + y[0]**4"))
    follower = Follower(f, Region(f))
    answers = follower.respond(np.array([[0.7], [0.7 + 1e-5]]), 6)
    D = sensitivity(f, answers.z[0], answers.dual[0], answers.force[0])
    assert D[0, 0] == pytest.approx((answers.z[1, 1] - answers.z[0, 1]) / 1e-5, rel=1e-3)


def test_the_leader_chooses_among_equal_answers():
    f = functions(entry(upper="(y[0] - 1)**2 + x[0]", lower="-y[0]**2"))
    answers = Follower(f, Region(f)).respond(np.array([[0.2]]), 16)
    assert answers.z[0, 1] == pytest.approx(1.0, abs=1e-6)
    assert answers.lower[0] == pytest.approx(-1.0, abs=1e-6)


# --- the search and its certificate -------------------------------------------------------------


@pytest.mark.parametrize("text", [entry(), CONVEXLESS, TRAP], ids=lambda text: text["name"])
def test_a_textbook_problem_is_solved_without_tuning(text):
    book = textbook.read(text)
    result = bl.solve(book.problem, x0=book.x0, y0=book.y0)
    verdict = referee.judge(book, np.asarray(result.x), np.asarray(result.y))
    assert verdict.kind is referee.Kind.SOLVED
    assert verdict.upper == pytest.approx(text["upper_best"], abs=1e-3)
    assert result.status.outcome is bl.Outcome.CONVERGED
    assert "global search" in result.status.advice
    proof = proof_of(result)
    assert proof.ok
    assert proof.gap <= 1e-9 * proof.scale
    assert result.history["upper"][-1] == pytest.approx(verdict.upper)
    assert "converged" in str(result)


def test_the_search_is_deterministic_and_keeps_dtypes():
    book = textbook.read(TRAP)
    x, y = book.x0.astype(jnp.float32), {"y": book.y0.astype(jnp.float32)}
    problem = bl.Problem(
        lambda x, y, b: book.problem.upper(x, y["y"], b),
        lambda x, y, b: book.problem.lower(x, y["y"], b),
        lower_set=bl.sets.Box(-1.0, 1.0),
        upper_set=bl.sets.Box(-1.0, 1.0),
    )
    first, again = (solve_small(problem, x, y, why="") for _ in range(2))
    assert first.x.dtype == first.y["y"].dtype == jnp.float32
    assert jnp.array_equal(first.x, again.x)
    assert jnp.array_equal(first.y["y"], again.y["y"])


def test_a_point_that_satisfies_the_conditions_but_is_no_answer_is_told():
    book = textbook.read(TRAP)
    proof, _ = check_small(book.problem, jnp.array([0.3]), jnp.array([0.0]))
    assert proof.feasible
    assert not proof.optimal
    assert proof.gap == pytest.approx(0.2, abs=1e-6)
    assert abs(proof.better[0]) == pytest.approx(1.0, abs=1e-6)
    assert "y is not the follower's answer" in str(proof)
    assert referee.judge(book, np.array([0.3]), np.zeros(1)).kind is referee.Kind.NOT_OPTIMAL
    outside, _ = check_small(book.problem, jnp.array([0.6]), jnp.array([1.5]))
    assert not outside.feasible
    assert "not feasible" in outside.summary()


def test_a_problem_without_a_feasible_point_ends_so():
    book = textbook.read(entry(upper_ineq=["-1 - y[0]**2"]))
    with pytest.raises(bl.SolveError, match="No point was found") as raised:
        bl.solve(book.problem, x0=book.x0, y0=book.y0, throw=True)
    assert raised.value.result.status.outcome is bl.Outcome.INFEASIBLE


def test_an_upper_set_that_excludes_every_answer_is_not_called_solved():
    book = textbook.read(entry(upper_ineq=["0.5 - y[0]"], upper_best=None))
    result = bl.solve(book.problem, x0=book.x0, y0=book.y0)
    assert not result.status.ok
    assert not proof_of(result).ok


@pytest.mark.slow
def test_maid_is_followed_by_the_search_where_it_was_misled():
    # y = x is a local minimum with curvature; y = x + 4 is better for the follower.
    def well(x, y, batch):
        t = y[0] - x[0]
        return t**2 * (t - 4) ** 2 / 16 - 0.2 * t

    problem = bl.Problem(lambda x, y, b: jnp.sum(x**2) + jnp.sum((y - 1) ** 2), well)
    result = bl.solve(problem, x0=jnp.array([0.1]), y0=jnp.array([0.1]), steps=40)
    assert "Chose MAID" in result.status.advice
    assert "global search for small problems came after it" in result.status.advice
    assert proof_of(result).ok
    assert float(result.y[0] - result.x[0]) == pytest.approx(4.1, abs=0.1)


def test_maid_is_checked():
    result = bl.solve(bl.Problem(smooth, follows), x0=X, y0=Y, steps=40)
    why, then = result.status.advice.split(". ", 1)
    assert why.startswith("Chose MAID")
    assert then[0].isupper()
    proof = proof_of(result)
    assert proof.ok
    assert proof.local is not None
    assert result.x[0] == pytest.approx(0.75, abs=1e-4)
    assert "Stationarity of x" in proof.summary()


# --- sets with equations ------------------------------------------------------------------------


def test_coupled_holds_equations():
    both = bl.sets.Coupled(lambda x, y: y - x, equalities=lambda x, y: y.sum() - 1)
    assert both.traits().equalities
    assert both.traits().inequalities
    found = both.constraints(jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0]))
    assert found.inequalities.tolist() == [1.0, -1.0]
    assert found.equalities == 1.0
    alone = bl.sets.Coupled(None, equalities=lambda x, y: y - x)
    assert not alone.traits().inequalities
    assert alone.violation(jnp.ones(1), jnp.zeros(1)) == 1.0
    with pytest.raises(ValueError, match="give h, or equalities, or both"):
        bl.sets.Coupled(None)
    with pytest.raises(TypeError, match="equalities is float"):
        bl.sets.Coupled(None, equalities=1.0)
    below = bl.Problem(smooth, follows, lower_set=both)
    assert all(method.unsupported(below) for method in bl.methods.all_methods())


# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-x[0]**2 + 3.0*y[1]", -4 + 15),
        ("exp(x[0]) / y[0] - log(y[1])", np.exp(2) / 4 - np.log(5)),
        ("Max(x[0], y[0]) - Min(2, y[1]) + Abs(-3)", 4 - 2 + 3),
        ("sin(pi) + cos(pi/3) + tan(0) + sqrt(y[0])", 0.5 + 2),
        ("x[0]**-1 + y[0]**0.5 + 2**x[0]", 0.5 + 2 + 4),
    ],
)
def test_expressions(text, expected):
    x, y = np.array([2.0]), np.array([4.0, 5.0])
    assert textbook.parse(text, 1, 2, functions=np)(x, y) == pytest.approx(expected)  # pyright: ignore
    found = textbook.parse(text, 1, 2)(jnp.asarray(x), jnp.asarray(y))
    assert float(found) == pytest.approx(expected)


def test_a_whole_power_has_a_derivative_at_zero():
    square = textbook.parse("x[0]**2 + x[0]**3.0", 1, 1)
    assert jax.grad(lambda x: square(x, x))(jnp.zeros(1)) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("__import__('os').system('true')", "is not allowed"),
        ("x.sum()", r"'x.sum\(\)' is not allowed"),
        ("x[0] if y[0] else 1", "is not allowed"),
        ("(lambda: 1)()", "is not allowed"),
        ("x[2]", r"'x\[2\]' is out of range: x has 2 entries"),
        ("x[-1]", "is not allowed"),
        ("x[0:1]", "is not allowed"),
        ("y[True]", "is not allowed"),
        ("z[0]", r"'z\[0\]' is not allowed"),
        ("x[0] // 2", "is not allowed"),
        ("exp(x[0], 2)", "gives exp 2 arguments; it takes 1"),
        ("exp(*x)", "is not allowed"),
        ("sinh(x[0])", "is not allowed"),
        ("1e999", "is not allowed"),
        ("'a'", "is not allowed"),
        ("2j", "is not allowed"),
        ("x[0] +", "is not an expression"),
        ("", "is not an expression"),
        ("(" * 3000 + "1" + ")" * 3000, "is not an expression|nested too deeply"),
        ("-" * 3000 + "1", "is not an expression|nested too deeply"),
        (3, "an expression as text is needed"),
    ],
    ids=range(21),
)
def test_what_is_not_of_the_language_is_refused(text, told):
    with pytest.raises(ValueError, match=told) as refused:
        textbook.parse(text, 2, 1, "some problem: lower")
    assert str(refused.value).startswith("some problem: lower")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": 3}, r"problems\[0\].name is 3"),
        ({"nx": 1.0}, "small: nx is 1.0; a whole number of at least 0"),
        ({"ny": 0}, "small: ny is 0; a whole number of at least 1"),
        ({"ny": True}, "small: ny is True"),
        ({"x_start": [1.0, 2.0]}, "x_start is .*; a list of 1 numbers"),
        ({"x_start": ["a"]}, r"x_start\[0\] is 'a'; a finite number"),
        ({"y_start": [float("nan")]}, r"y_start\[0\] is nan"),
        ({"lower_ineq": "y[0]"}, "lower_ineq is 'y\\[0\\]'; a list of expressions"),
        ({"lower_ineq": ["y[0]", "w"]}, r"small: lower_ineq\[1\]: 'w' is not allowed"),
        ({"upper_best": "1"}, "upper_best is '1'"),
    ],
)
def test_files_are_checked_item_by_item(changes, told, tmp_path):
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"problems": [entry(**changes)]}))
    with pytest.raises(ValueError, match=told):
        textbook.load(file)


def test_files_that_are_none_are_refused(tmp_path):
    file = tmp_path / "p.json"
    with pytest.raises(ValueError, match="cannot be read"):
        textbook.load(file)
    for content, told in (
        ("{", "is not JSON"),
        ("{}", "holds no list"),
        ("[]", "holds no list"),
        ("[3]", r"problems\[0\] is a int"),
        (json.dumps([entry(), entry()]), "two problems are called small"),
        (json.dumps([{k: v for k, v in entry().items() if k != "lower"}]), "lower is missing"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=told):
            textbook.load(file)


# --- the referee and the command ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "kind"),
    [
        (0.0, 1.0, referee.Kind.SOLVED),
        (0.8, 1.0, referee.Kind.WORSE),
        (0.0, 0.0, referee.Kind.NOT_OPTIMAL),
        (1.5, 1.0, referee.Kind.INFEASIBLE),
        (0.0, 1.1, referee.Kind.INFEASIBLE),
    ],
)
def test_the_referee(x, y, kind):
    verdict = referee.judge(textbook.read(entry()), np.array([x]), np.array([y]))
    assert verdict.kind is kind


def test_the_referee_without_a_reference_and_without_a_minimum():
    at = np.zeros(1), np.ones(1)
    unknown = textbook.read(entry(upper_best=None))
    assert referee.judge(unknown, *at).kind is referee.Kind.NO_REFERENCE
    unbounded = textbook.read(entry(lower_ineq=["y[0] + 1.0"]))
    assert referee.judge(unbounded, *at).kind is referee.Kind.NOT_OPTIMAL


def test_a_referee_that_fails_is_a_line_of_the_table(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("no point")

    monkeypatch.setattr(referee, "judge", broken)
    monkeypatch.setattr(bl, "solve", lambda *_, **__: bl.Result(
        jnp.ones(1), jnp.ones(1), {}, bl.Status(bl.Outcome.CONVERGED, ""),
        FollowerCertificate(2.0, -1.0, -1.0, None, 0.0, 0.0, 65), None, None))  # fmt: skip
    row = command.solve(textbook.read(entry()))
    assert row.kind == command.ERROR
    assert row.status == "ZeroDivisionError: no point"
    assert not row.claimed


def test_the_command(tmp_path):
    file, out = tmp_path / "p.json", tmp_path / "out"
    file.write_text(json.dumps([entry(), CONVEXLESS, TRAP]))

    given = ["bench", "textbook", "--problems", str(file), "--out", str(out)]
    found = run(*given)
    assert found.exit_code == 0, found.output
    assert "3 of 3 problems with a reference solved" in found.output
    assert "Claimed falsely: none." in found.output
    assert "disagree on: none." in found.output
    rows = json.loads((out / "textbook.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["small", "mb_2007_14", "trap"]
    assert all(row["agrees"] and row["claimed"] for row in rows)
    assert (out / "textbook.png").stat().st_size > 1000

    refused = run(*given, "--only", "absent")
    assert refused.exit_code == 2
    assert "no problem with 'absent'" in refused.output


# --- several answers ----------------------------------------------------------------------------

WELLS = bl.Problem(  # y is -1 or 1, as the leader or its enemy likes
    lambda x, y, b: (x[0] - 0.3) ** 2 + x[0] * y[0],
    lambda x, y, b: (y[0] ** 2 - 1) ** 2,
    upper_set=bl.sets.Box(-2.0, 2.0),
    lower_set=bl.sets.Box(-3.0, 3.0),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("follower", "x", "value", "other"),
    [("optimistic", 0.8, -0.55, 1.05), ("pessimistic", 0.0, 0.09, None)],
)
def test_the_best_and_the_worst_of_several_answers(follower, x, value, other):
    # f = (x − 0.3)² ∓ |x|.
    result = bl.solve(WELLS, x0=jnp.array([0.4]), y0=jnp.array([0.5]), follower=follower)
    proof = proof_of(result)
    assert float(result.x[0]) == pytest.approx(x, abs=1e-3)
    assert proof.upper == pytest.approx(value, abs=1e-3)
    assert proof.optimal
    assert proof.pessimistic == (other and pytest.approx(other, abs=1e-3))


@pytest.mark.slow
def test_a_follower_that_likes_all_answers_alike():
    flat = bl.Problem(
        lambda x, y, b: (x[0] - y[0] - 0.2) ** 2,
        lambda x, y, b: 0.0 * y[0] * x[0],
        upper_set=bl.sets.Box(0.4, 2.0),
        lower_set=bl.sets.Box(-1.0, 1.0),
    )
    result = bl.solve(flat, x0=jnp.array([1.0]), y0=jnp.array([0.5]), follower="pessimistic")
    proof = proof_of(result)  # max over y of (x − 0.2 − y)² is (0.8 + x)², least at x = 0.4
    assert result.status.outcome is bl.Outcome.CONVERGED
    assert float(result.x[0]) == pytest.approx(0.4, abs=1e-4)
    assert proof.upper == pytest.approx(1.44, abs=1e-3)
    assert proof.optimistic == pytest.approx(0.0, abs=1e-2)
    assert "pessimistic one" in result.status.advice


def test_a_pessimist_is_for_the_global_search():
    with pytest.raises(ValueError, match="'optimistic' or 'pessimistic'"):
        bl.solve(WELLS, x0=jnp.ones(1), y0=jnp.ones(1), follower="worst")
    with pytest.raises(ValueError, match="SOBA was given"):
        bl.solve(WELLS, bl.methods.SOBA(), jnp.ones(1), jnp.ones(1), follower="pessimistic")
    with pytest.raises(ValueError, match="at most 40 variables"):
        bl.solve(WELLS, x0=jnp.ones(1), y0=jnp.ones(40), follower="pessimistic")
