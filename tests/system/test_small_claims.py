"""What is claimed of small problems solved without a method, and what must not be."""

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.driver import FollowerCertificate, Outcome
from bilevel.global_search import check_small, verdict
from bilevel.global_search.descent import can_improve, descend
from bilevel.global_search.follower import Follower
from bilevel.global_search.functions import LOWER, Functions
from bilevel.global_search.kinks import settle
from bilevel.global_search.rays import lower_ray, lower_valley, recession, upper_ray
from bilevel.global_search.region import Region
from bilevel.global_search.search import Search

INF = jnp.inf


def problem(upper, lower, **given) -> bl.Problem:
    return bl.Problem(lambda x, y, b: upper(x, y), lambda x, y, b: lower(x, y), **given)


def near(x, y):
    return (x[0] - 1) ** 2 + jnp.sum((y - 1) ** 2)


def functions(lower, y=(0.4,), upper=near, x=(0.3,), **given) -> Functions:
    return Functions(problem(upper, lower, **given), jnp.array(x), jnp.array(y))


def proof_of(result: bl.Result) -> FollowerCertificate:
    assert isinstance(result.certificate, FollowerCertificate)
    return result.certificate


# --- blocks -------------------------------------------------------------------------------------


def test_open_sides_are_rows_that_never_act():
    sets = {"lower_set": bl.sets.Box(0.0, INF), "upper_set": bl.sets.Box(-INF, 2.0)}
    f = functions(lambda x, y: y[0] * x[0], **sets)
    assert (len(f.G), len(f.g)) == (1, 1)
    z = np.array([[0.5, 0.7]])
    assert np.isfinite(f(z).c).all()
    assert np.isfinite(f.values(z)).all()
    assert f.violations(f.values(z)) == (0, 0)


def test_a_small_lower_loss_is_divided_by_how_much_it_moves():
    f = functions(lambda x, y: 1e-8 * (y[0] - x[0]) ** 2)
    assert f.units[LOWER] < 1e-7
    z = np.array([[0.5, 3.5]])
    assert f(z).c[0, LOWER] * f.units[LOWER] == pytest.approx(9e-8)
    assert f(z).J[0, LOWER, 1] * f.units[LOWER] == pytest.approx(6e-8)
    assert not f.bent


def test_a_kink_is_no_quadratic():
    assert functions(lambda x, y: jnp.abs(y[0] - x[0]) + y[0] ** 2).bent


@pytest.mark.parametrize(
    ("lower", "falls"),
    [
        (lambda x, y: jnp.exp(-y[0]), True),
        (lambda x, y: -jnp.log(1 + y[0] ** 2), True),
        (lambda x, y: y[0] ** 3, True),
        (lambda x, y: jnp.maximum(1 - y[0], 0.0) ** 2, False),
        (lambda x, y: (y[0] - 3) ** 4, False),
        (lambda x, y: 0 * y[0], False),
    ],
    ids=["tail", "logarithm", "cubic", "half-line of answers", "quartic", "constant"],
)
def test_a_ray_along_which_the_lower_loss_falls(lower, falls):
    way = lower_ray(functions(lower), np.array([0.3, 20.0]))
    assert (way is not None) == falls


def test_a_box_leaves_no_ray_and_a_half_open_one_does():
    def hill(x, y):
        return -(y[0] ** 2)

    assert lower_ray(functions(hill, lower_set=bl.sets.Box(-1, 1)), np.array([0.3, 1.0])) is None
    way = lower_ray(functions(hill, lower_set=bl.sets.Box(0, INF)), np.array([0.3, 1.0]))
    assert way == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("lower", "falls"),
    [
        (lambda x, y: (1 - y[0] * y[1]) ** 2 + y[0] ** 2, True),
        (lambda x, y: (y[0] - 1) ** 2 + 9 * (y[1] - y[0] ** 2) ** 2, False),
        (lambda x, y: (y[0] + y[1] - 2) ** 4, False),
    ],
    ids=["no minimum", "curved valley", "line of answers"],
)
def test_a_curved_valley_that_falls_for_ever(lower, falls):
    f, z = functions(lower, y=(1.0, 1.0)), np.array([0.3, 1.0, 1.0])
    assert lower_ray(f, z) is None
    way = lower_valley(f, Region(f), z)
    assert way == pytest.approx([0, 1]) if falls else way is None


def test_values_that_starts_saw_on_their_way_count_against_an_answer():
    rows = bl.sets.Coupled(lambda x, y: 1 - y[0] * y[1])  # inf y0 = 0 over the hyperbola
    f = functions(lambda x, y: y[0], y=(1.4, 1.1), lower_set=(bl.sets.Box(0.0, INF), rows))
    answer = Follower(f, Region(f)).respond(np.array([[0.3]]), 32)
    assert not answer.ended[0] or answer.lower[0] * f.units[LOWER] < 0.01


def test_recession_directions_are_projections_on_the_cone():
    A = np.array([[-1.0, 0.0], [1.0, -1.0]])  # d0 >= 0 and d1 >= d0
    found = recession(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]), A, np.zeros((0, 2)))
    assert found == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


def test_going_down_a_kink():
    f = functions(lambda x, y: jnp.abs(y[0] - 1) + 2 * jnp.abs(y[1] + x[0]), y=(0.4, 2.0))
    z, c, error = settle(f, np.array([[0.3, 4.0, 4.0], [0.5, -3.0, 1.0]]))
    assert z[:, 1:] == pytest.approx(np.array([[1, -0.3], [1, -0.5]]), abs=1e-7)
    assert np.all(error == 0)
    assert c[:, LOWER] * f.units[LOWER] == pytest.approx(0, abs=1e-7)


def test_a_point_of_x_that_a_step_improves_and_a_leader_without_end():
    f = functions(lambda x, y: (y[0] - x[0]) ** 2, upper=lambda x, y: (y[0] - 1) ** 2)
    follower, none = Follower(f, Region(f)), (np.zeros(0), np.zeros(0))
    assert can_improve(f, follower, np.array([0.5, 0.5]), *none)
    assert not can_improve(f, follower, np.array([1.0, 1.0]), *none)
    assert upper_ray(f, follower, np.array([1.0, 1.0]), *none) is None
    down = descend(f, follower, np.array([0.5, 0.5]), *none)
    assert down is not None
    assert down.z[0] == pytest.approx([1, 1], abs=1e-4)
    assert descend(f, follower, np.array([1.0, 1.0]), *none) is None
    down = functions(lambda x, y: (y[0] - x[0]) ** 2, upper=lambda x, y: x[0] + 0 * y[0])
    found = upper_ray(down, Follower(down, Region(down)), np.array([0.3, 0.3]), *none)
    assert found is not None
    assert found[0] == pytest.approx([-1.0])


def test_far_minima_of_a_wave_are_found():
    f = functions(lambda x, y: jnp.cos(5 * y[0]) + 0.01 * (y[0] - x[0]) ** 2, y=(6.9,))
    answer = Follower(f, Region(f)).respond(np.array([[0.0]]), 64)
    grid = np.linspace(-40, 50, 900_001)
    right = (np.cos(5 * grid) + 0.01 * grid**2).min()
    assert answer.lower[0] * f.units[LOWER] == pytest.approx(right, abs=1e-6)


def test_how_many_minima_the_starts_ended_at():
    wells = functions(lambda x, y: (y[0] ** 2 - 1) ** 2 + 0.1 * y[0])
    bowl = functions(lambda x, y: (y[0] - x[0]) ** 2)
    counts = [Follower(f, Region(f)).respond(np.array([[0.3]]), 16).minima for f in (wells, bowl)]
    assert [int(count[0]) for count in counts] == [2, 1]


def test_a_candidate_that_lives_on_a_gap_goes_for_its_refined_form():
    # The leader wants y = 1; y = 0.93 has a gap of 1e-9 only.
    f = functions(lambda x, y: (y[0] - x[0]) ** 6, upper=lambda x, y: (y[0] - 1) ** 2 + x[0] ** 2)
    search = Search(f)
    z, none = np.array([0.9, 0.93]), np.zeros(0)
    search.check([(z, none, none)], every=True)
    best = search.best()
    assert best is not None
    sharp = search.sharpen(best)
    assert sharp.gap < 1e-15
    assert all(c.gap < 1e-15 for c in search.checked)


# --- the certificate ----------------------------------------------------------------------------


def test_a_gap_is_measured_by_how_much_the_lower_loss_moves():
    small = problem(
        near, lambda x, y: 1e-8 * (y[0] - x[0]) ** 2, lower_set=bl.sets.Box(-60.0, 60.0)
    )
    proof, _ = check_small(small, jnp.array([1.0]), jnp.array([-50.0]))
    assert proof.gap == pytest.approx(51**2 * 1e-8, rel=1e-3)
    assert not proof.optimal


def test_a_y_that_is_close_is_finished():
    proof, y = check_small(
        problem(near, lambda x, y: (y[0] - x[0]) ** 2), jnp.array([1.0]), jnp.array([1.0 + 1e-4])
    )
    assert float(y[0]) == pytest.approx(1.0, abs=1e-6)
    assert proof.ok
    assert proof.proved
    assert proof.stationary
    assert "y: proved" in proof.summary()
    assert "x: stationary" in proof.summary()


def test_words_for_what_is_missing():
    known = FollowerCertificate(1.0, 0.0, 0.0, None, 0.0, 0.0, 65)
    assert known.ok
    assert known._replace(stationary=True).ok
    moving = known._replace(stationary=False, candidates=4)
    assert not moving.ok
    assert "x: not stationary, the best of 4 points" in moving.summary()
    outcome, words = verdict(moving)
    assert outcome is bl.Outcome.STALLED
    assert "x0=result.x, y0=result.y" in words
    endless = known._replace(falls=1.0)
    assert not endless.ok
    assert endless.gap == np.inf
    assert "no minimum" in endless.summary()
    unbounded = known._replace(upper_falls=1.0)
    assert not unbounded.ok
    assert "falls for ever along a direction of x" in unbounded.summary()
    assert "pessimistic" in known._replace(pessimistic=3.0).summary()


# --- the front door -----------------------------------------------------------------------------


def solve(upper, lower, x0, y0, **sets) -> bl.Result:
    return bl.solve(problem(upper, lower, **sets), x0=jnp.asarray(x0), y0=jnp.asarray(y0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "lower",
    [
        lambda x, y: -(y**2) + x * y,
        lambda x, y: -jnp.log(1 + (y - x) ** 2),
        lambda x, y: (y - x) ** 3,
        lambda x, y: (1 + x**2) * jnp.exp(-y),
    ],
    ids=["maximum", "unbounded", "inflection", "not attained"],
)
def test_a_follower_without_a_minimum_is_not_answered(lower):
    result = solve(lambda x, y: (x - 1) ** 2 + y**2, lower, 0.3, 0.4)
    assert result.status.outcome is bl.Outcome.NOT_OPTIMAL
    assert "no minimum" in result.status.advice


@pytest.mark.slow
def test_an_unbounded_leader_is_named():
    result = solve(lambda x, y: x[0] + 0 * y[0], lambda x, y: (y[0] - x[0]) ** 2, [0.3], [0.0])
    assert result.status.outcome is bl.Outcome.UNBOUNDED
    assert not result.status.ok
    assert proof_of(result).upper_falls == pytest.approx([-1.0])


@pytest.mark.slow
def test_the_worst_answer_of_a_linear_follower_is_a_corner():
    """Shops sell A and B dearer than C by 2 and 3 at most; at these prices a buyer has no
    preference, and may buy C alone. Interior points of the optimal face do not show that."""
    cost, cap = jnp.array([2.0, 1.0, 4.0]), jnp.array([[1.0, 0.0, 0.0]])
    rows = jnp.concatenate([-jnp.eye(3), cap]), jnp.array([0.0, 0.0, 0.0, 0.6])
    problem = bl.Problem(
        lambda x, y, b: -x @ y[:2],
        lambda x, y, b: cost @ y + x @ y[:2],
        upper_set=bl.sets.Box(0.0, 5.0),
        lower_set=bl.sets.Polyhedron(*rows, E=jnp.ones((1, 3)), d=jnp.ones(1)),
    )
    result = bl.solve(problem, x0=jnp.ones(2), y0=jnp.ones(3) / 3, progress=False)
    assert result.certificate.upper == pytest.approx(-3.0, abs=1e-4)  # x = (2, 3), all of B
    assert result.certificate.pessimistic == pytest.approx(0.0, abs=1e-4)


def test_the_optimistic_answer_of_a_continuum_and_the_pessimistic_value():
    A = jnp.array(np.random.default_rng(0).normal(size=(2, 5)))
    result = solve(
        lambda x, y: jnp.sum((y - 1) ** 2) + 0.01 * jnp.sum(x**2),
        lambda x, y: 0.5 * jnp.sum((A @ y - x) ** 2),
        jnp.full(2, 0.3),
        jnp.zeros(5),
    )
    y = np.linalg.solve(np.eye(5) + 0.01 * A.T @ A, np.ones(5))
    right = np.sum((y - 1) ** 2) + 0.01 * np.sum((A @ y) ** 2)
    proof = proof_of(result)
    assert proof.upper == pytest.approx(right, abs=1e-6)
    assert proof.pessimistic is not None
    assert proof.pessimistic > right + 0.1
    assert "optimistic" in result.status.advice


@pytest.mark.slow
def test_half_open_bounds_of_linear_programs():
    rows = bl.sets.Coupled(
        lambda x, y: jnp.stack(
            [3 - x[0] - y[0], y[0] - 2 * x[0], 2 * x[0] + y[0] - 12, 3 * x[0] - 2 * y[0] - 4]
        )
    )
    result = solve(
        lambda x, y: x[0] - 4 * y[0],
        lambda x, y: y[0],
        [1.0],
        [1.0],
        upper_set=bl.sets.Box(0.0, INF),
        lower_set=(bl.sets.Box(0.0, INF), rows),
    )
    assert result.status.ok
    assert [float(result.x[0]), float(result.y[0])] == pytest.approx([4, 4], abs=1e-6)


@pytest.mark.slow
def test_a_kink_is_solved_in_x():
    result = solve(
        lambda x, y: (x - 1) ** 2 + y**2,
        lambda x, y: jnp.maximum((y - 1) ** 2, (y + 1) ** 2) + 0.1 * x * y,
        0.0,
        0.5,
    )
    assert float(result.x) == pytest.approx(1, abs=1e-2)  # y* = 0 for |x| < 20
    assert not proof_of(result).proved


@pytest.mark.slow
def test_a_kinked_answer_is_followed_to_a_stationary_x():
    def pinball(x, y):
        return jnp.maximum(0.2 * (y - x), 0.8 * (x - y)) + 0.05 * y**2

    # From y = 0.4 the lower loss looks like a parabola, and MAID stalls at the kink y = x.
    result = solve(lambda x, y: (y - 1) ** 2 + 0.1 * x**2, pinball, 0.3, 0.4)
    assert result.status.outcome is bl.Outcome.CONVERGED
    assert proof_of(result).stationary
    assert proof_of(result).upper == pytest.approx(1 / 11, abs=1e-5)


@pytest.mark.slow
def test_a_local_x_of_a_wavy_follower_is_not_the_last_word():
    def waves(x, y):
        return jnp.cos(5 * y) + 0.01 * (y - x) ** 2

    x = bl.sets.Box(-2.0, 2.0)
    result = solve(lambda x, y: (y - 2) ** 2 + 0.1 * x**2, waves, 0.3, 0.4, upper_set=x)
    grid = np.linspace(-6, 6, 200_001)
    answers = {x: grid[(np.cos(5 * grid) + 0.01 * (grid - x) ** 2).argmin()] for x in
               np.linspace(-2, 2, 801)}  # fmt: skip
    right = min((y - 2) ** 2 + 0.1 * x**2 for x, y in answers.items())
    assert "several minima" in result.status.advice
    assert proof_of(result).upper <= right + 1e-6


@pytest.mark.slow
def test_an_infimum_along_a_curve_is_not_claimed():
    rows = bl.sets.Coupled(lambda x, y: 1 - y[0] * y[1])
    result = solve(
        lambda x, y: jnp.sum((y - 1) ** 2) + 0.1 * x[0] ** 2,
        lambda x, y: y[0] + 0 * y[1],
        [0.3],
        [1.4, 1.1],
        lower_set=(bl.sets.Box(0.0, INF), rows),
        upper_set=bl.sets.Box(-2.0, 2.0),
    )
    assert result.status.outcome is bl.Outcome.NOT_OPTIMAL
    assert "no minimum" in result.status.advice


def test_a_leader_that_falls_for_ever_is_named_from_any_start():
    """MAID runs far along x before the search takes over, beyond where the search samples."""
    problem = bl.Problem(lambda x, y, b: x[0] + 0 * y[0], lambda x, y, b: (y[0] - x[0]) ** 2)
    for start in (0.3, 3e7):
        result = bl.solve(problem, x0=jnp.full(1, start), y0=jnp.zeros(1), progress=False)
        assert result.status.outcome is Outcome.UNBOUNDED, result.status
