"""Quadratic programs, lower solvers with multipliers, and derivatives through active sets."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import hypergrad, linear, lower, oracles, problems, sets, trees
from bilevel.lower import Duals, kkt
from bilevel.problem import Batch, Problem

pytest.importorskip("qpax")
SQP = lower.SQP()
RAND = problems.randqp()


# --- programs -----------------------------------------------------------------------------------


def random_program(seed=0, m=5, k=7, p=2):
    rng = np.random.default_rng(seed)
    M = rng.normal(size=(m, m))
    A, E = rng.normal(size=(k, m)), rng.normal(size=(p, m))
    inside = rng.normal(size=m)
    b = A @ inside + rng.uniform(0.0, 0.5, size=k)
    parts = M @ M.T + 0.1 * np.eye(m), 3 * rng.normal(size=m), A, b, E, E @ inside
    return tuple(map(jnp.asarray, parts))


def optimality(program, found):
    """The largest violation of the conditions, each written out."""
    Q, c, A, b, E, d = program
    y, (along, across) = found.y, found.duals
    slack = b - A @ y
    return max(
        jnp.abs(Q @ y + c + A.T @ along + E.T @ across).max(),
        jnp.abs(E @ y - d).max(),
        jnp.maximum(-slack, 0).max(),
        jnp.maximum(-along, 0).max(),
        jnp.abs(along * slack).max(),
    )


solve = jax.jit(lower.qp)


@pytest.mark.parametrize("size", [1.0, 1e6, 1e-6])
def test_qp_is_solved_to_rounding_in_any_units(size):
    for seed in range(5):
        Q, c, A, b, E, d = random_program(seed)
        program = size * Q, size * c, A, b, E, d
        found = solve(*program)
        assert optimality(program, found) < 1e-11 * max(size, 1)
        assert found.residual < 1e-11
        assert np.array_equal(found.active, b - A @ found.y < 1e-9)
        assert 0 < found.active.sum() < 6  # some side is active, so that there is something to test


def test_qp_slopes_equal_central_differences():
    program = random_program(1)
    rng = np.random.default_rng(2)
    direction = tuple(jnp.asarray(rng.normal(size=part.shape)) for part in program)
    direction = ((direction[0] + direction[0].T) / 2, *direction[1:])
    weights = jnp.asarray(rng.normal(size=5))

    def along(s):
        return weights @ lower.qp(*trees.axpy(s, direction, program)).y

    value = jax.jit(along)
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert abs(slope) > 0.01
    np.testing.assert_allclose(jax.jit(jax.grad(along))(0.0), slope, rtol=1e-6)


@pytest.mark.slow
def test_qp_has_second_derivatives():
    Q, c, A, b, E, d = random_program(1)

    def value(s):
        return jnp.sum(jnp.sin(lower.qp(Q + s * jnp.eye(5), c, A + s, b, E, d).y))

    at = jax.jit(value)
    np.testing.assert_allclose(
        jax.jit(jax.value_and_grad(jax.grad(value)))(0.0),
        ((at(1e-5) - at(-1e-5)) / 2e-5, (at(1e-3) - 2 * at(0.0) + at(-1e-3)) / 1e-6),
        rtol=1e-3,
    )
    np.testing.assert_allclose(jax.jit(jax.jacfwd(value))(0.0), jax.jit(jax.grad(value))(0.0))


def test_multipliers_are_slopes_of_the_value():
    """`∂(optimal value)/∂b = −λ` and `∂/∂d = −ν`."""
    Q, c, A, b, E, d = random_program(1)

    def value(b, d):
        y = lower.qp(Q, c, A, b, E, d).y
        return y @ (Q @ y) / 2 + c @ y

    by_b, by_d = jax.jit(jax.grad(value, argnums=(0, 1)))(b, d)
    duals = solve(Q, c, A, b, E, d).duals
    np.testing.assert_allclose(by_b, -duals.inequalities, atol=1e-10)
    np.testing.assert_allclose(by_d, -duals.equalities, atol=1e-10)


def test_qp_without_some_of_its_constraints():
    Q, c, A, b, E, d = random_program()
    np.testing.assert_allclose(lower.qp(Q, c).y, -jnp.linalg.solve(Q, c))
    only = lower.qp(Q, c, E=E, d=d)
    assert (
        optimality((Q, c, A, b + 1e9, E, d), only._replace(duals=Duals(0 * b, only.duals[1])))
        < 1e-11
    )
    off = jnp.full_like(b, jnp.inf)
    assert not np.any(solve(Q, c, A, off, E, d).active)
    np.testing.assert_allclose(solve(Q, c, A, off, E, d).y, only.y, atol=1e-12)


def test_dependent_active_rows_do_no_harm():
    A, b = jnp.array([[1.0, 1.0], [2.0, 2.0]]), jnp.array([1.0, 2.0])
    slope = jax.jit(jax.jacrev(lambda t: lower.qp(jnp.eye(2), -jnp.ones(2), A, b * t).y))(1.0)
    np.testing.assert_allclose(slope, [0.5, 0.5], atol=1e-12)


def test_lp_at_a_vertex():
    c, b = jnp.array([-1.0, -2.0]), jnp.array([1.0, 0.7, 0.0, 0.0])
    A = jnp.array([[1.0, 1.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    found = lower.lp(c, A, b)
    np.testing.assert_allclose(found.y, [0.3, 0.7], atol=1e-12)
    np.testing.assert_allclose(found.duals.inequalities, [1.0, 1.0, 0.0, 0.0], atol=1e-12)
    by_c, by_b = jax.jit(jax.jacrev(lambda c, b: lower.lp(c, A, b).y, argnums=(0, 1)))(c, b)
    np.testing.assert_allclose(by_c, np.zeros((2, 2)), atol=1e-12)
    np.testing.assert_allclose(by_b[:, :2], [[1.0, -1.0], [0.0, 1.0]], atol=1e-12)


def test_no_solution_is_told():
    c = jnp.array([1.0, 1.0])
    unbounded = lower.lp(c, jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.ones(2))
    empty = lower.qp(jnp.eye(2), c, jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.array([-1.0, -1.0]))
    assert not unbounded.residual < 1e-3
    assert not empty.residual < 1e-3


@pytest.mark.slow
def test_programs_by_first_order_iterations():
    pytest.importorskip("mpax")
    program = random_program(3)
    by_points = solve(*program)
    by_steps = jax.jit(functools.partial(lower.qp, solver=lower.Mpax()))(*program)
    np.testing.assert_allclose(by_steps.y, by_points.y, atol=1e-10)
    for one, other in zip(by_steps.duals, by_points.duals, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_what_does_not_fit_is_refused(monkeypatch):
    Q, c, A, b, *_ = random_program()
    with pytest.raises(ValueError, match="A is given without b"):
        lower.qp(Q, c, A)
    with pytest.raises(ValueError, match="do not fit a variable of 5 entries"):
        lower.qp(Q, c, A[:, :3], b)
    monkeypatch.setitem(sys.modules, "qpax", None)
    with pytest.raises(ImportError, match=r"pip install 'bilevel\[qp\]'"):
        lower.Qpax(1e-9).solve(kkt_program(Q, c, A, b))


def kkt_program(Q, c, A, b):
    return lower.programs.Program(Q, c, A, b, A[:0], b[:0])


# --- the lower solver ---------------------------------------------------------------------------


def curved(x, y, batch):
    return jnp.sum(jnp.cosh(y - x)) + (y[0] * y[1] - x[0]) ** 2 / 20


def cubic(x, y, batch):
    return jnp.sum(y**3) + x @ y


SETS = {
    "free": sets.Free(),
    "box": sets.Box(-0.2, 0.4),
    "half-open box": sets.Box(hi=jnp.array([0.4, jnp.inf])),
    "simplex": sets.Simplex(),
    "ball": sets.Ball(0.5),
    "curve that moves": sets.Coupled(
        lambda x, y: jnp.sum((y - x**2) ** 2) - 0.05 + 0.1 * jnp.sum(x[1])
    ),
    "row that moves": sets.Polyhedron(
        lambda x: jnp.array([[1.0, 0.0]]) + x[0] * jnp.array([[0.0, 1.0]]), lambda x: x[1:]
    ),
    "two sets": (sets.Box(-0.2, 0.6), sets.Polyhedron(E=[[1.0, 1.0]], d=[0.5])),
}
X = jnp.array([0.8, 0.3])


@pytest.mark.slow(unless=lambda name: name == "box")
@pytest.mark.parametrize("name", SETS)
def test_sqp_ends_at_a_kkt_point(name):
    problem = Problem(cubic, curved, lower_set=SETS[name])
    found = jax.jit(lambda x: SQP.solve(problem, x, jnp.array([0.3, -0.1])))(X)
    y, (along, across) = found.y, found.duals
    h, A, _, E = kkt.face(problem, X, y)
    force = jax.grad(curved, 1)(X, y, None) + A.T @ along + E.T @ across
    np.testing.assert_allclose(force, 0, atol=1e-9)
    np.testing.assert_allclose(along * h, 0, atol=1e-9)
    assert np.all(along >= 0)
    assert problem.lower_set.violation(y, X) < 1e-9
    assert found.residual < 1e-9
    assert found.steps < 12


def test_sqp_solves_a_quadratic_in_one_step():
    found = jax.jit(lambda x: SQP.solve(RAND.problem, x, RAND.y0))(RAND.x0)
    assert found.steps == 1
    assert 0 < found.active.sum() < 5
    np.testing.assert_allclose(found.y, RAND.y_star(RAND.x0), atol=1e-13)


def test_sqp_in_single_precision_and_on_trees():
    problem = Problem(
        lambda x, y, batch: jnp.sum(x),
        lambda x, y, batch: jnp.sum((y["a"] - x) ** 2) + jnp.sum((y["b"][0][0] + x) ** 2),
        lower_set=sets.Box(-1.0, 1.0),
    )
    y0 = {"a": jnp.zeros(2, jnp.float32), "b": [jnp.zeros((1, 2), jnp.float32)]}
    found = jax.jit(lambda x: SQP.solve(problem, x, y0))(jnp.array([0.5, 2.0], jnp.float32))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found.y))
    np.testing.assert_allclose(found.y["a"], [0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(found.y["b"][0], [[-0.5, -1.0]], atol=1e-6)
    # the four sides below, then the four above
    np.testing.assert_allclose(found.duals.inequalities, [0, 0, 0, 2, 0, 2, 0, 0], atol=1e-5)


# --- the five forms of the derivative -----------------------------------------------------------


solved = jax.jit(lambda problem, x: SQP.solve(problem, x, RAND.y0))


class Local:
    """All matrices of RANDQP at one point, in numpy, from the definitions."""

    def __init__(self, case, x):
        self.x, self.case = x, case
        found = solved(case.problem, x)
        self.y, self.duals = found.y, found.duals
        self.lam = np.asarray(found.duals.inequalities)
        self.on = self.lam > 1e-8
        self.H, P, _ = map(np.asarray, case.problem.lower.args)
        self.Gyx = P.T
        rows = case.problem.lower_set
        B, b = map(np.asarray, rows.b.args)
        self.A, self.B = np.asarray(rows.A), B
        self.h = self.A @ self.y + B @ x - b
        self.f_x, self.f_y = np.asarray(x), np.asarray(self.y) - 1

    def hypergradient(self, J):
        return self.f_x + J.T @ self.f_y

    def value(self, x):
        return self.case.problem.upper(x, solved(self.case.problem, x).y, None)


def schur(at):
    A, B = at.A[at.on], at.B[at.on]
    H_G, H_A = np.linalg.solve(at.H, at.Gyx), np.linalg.solve(at.H, A.T)
    dlam = -np.linalg.solve(A @ H_A, A @ H_G - B)
    return -H_G - H_A @ dlam


def null_space(at):
    A, B = at.A[at.on], at.B[at.on]
    V = np.linalg.svd(A)[2][len(A) :].T
    Y = np.linalg.pinv(A) @ B
    return -V @ np.linalg.solve(V.T @ at.H @ V, V.T @ (at.Gyx - at.H @ Y)) - Y


def complementarity(at):
    L, m = np.diag(at.lam), len(at.y)
    K = np.block([[at.H, at.A.T], [L @ at.A, np.diag(at.h)]])
    return -np.linalg.solve(K, np.concatenate([at.Gyx, L @ at.B]))[:m]


@functools.cache
def local(seed):
    case = problems.randqp(seed=seed)
    return Local(case, case.x0)


adjoint = jax.jit(hypergrad.kkt, static_argnames="weighted")


@pytest.mark.slow(unless=lambda seed: seed == 0)
@pytest.mark.parametrize("seed", [0, 2, 3, 4])
def test_the_forms_of_the_hypergradient_agree(seed):
    at = local(seed)
    assert 0 < at.on.sum() < len(at.on)
    case, x = at.case, at.x
    np.testing.assert_allclose(at.y, case.y_star(x), atol=1e-12)
    by = functools.partial(adjoint, case.problem, x, at.y, at.duals)
    masked, weighted = by(), by(weighted=True)
    slopes = [(at.value(x + e) - at.value(x - e)) / 2e-6 for e in 1e-6 * np.eye(x.size)]
    np.testing.assert_allclose(masked.grad, slopes, atol=1e-6)
    for J in (schur(at), null_space(at), complementarity(at)):
        np.testing.assert_allclose(masked.grad, at.hypergradient(J), atol=1e-10)
    np.testing.assert_allclose(masked.grad, weighted.grad, atol=1e-10)
    np.testing.assert_allclose(masked.residual, 0, atol=1e-10)
    np.testing.assert_allclose(masked.sc_margin, np.maximum(at.lam, -at.h).min(), rtol=1e-9)


@pytest.mark.slow(unless=lambda solver: solver is SQP)
@pytest.mark.parametrize("solver", [SQP, lower.ToTolerance(1e-13)], ids=["KKT", "fixed point"])
def test_argmin_has_the_jacobian_of_the_active_set(solver):
    at = local(0)

    def y(x):
        return lower.argmin(at.case.problem, x, at.case.y0, solver=solver)

    J = schur(at)
    np.testing.assert_allclose(jax.jit(jax.jacrev(y))(at.x), J, atol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(y))(at.x), J, atol=1e-9)


def test_weights_give_the_hypergradient_of_the_log_barrier():
    """KINK1-like, where the barrier's minimiser is known: `y − x = t/y`."""
    case, t, x = problems.kink1(), 0.05, jnp.array(0.3)

    def y_t(x):
        return (x + jnp.sqrt(x**2 + 4 * t)) / 2

    y = y_t(x)
    duals = Duals(jnp.array([t / y, 0.0]), jnp.zeros(0))  # the side y >= 0, and the open one
    found = hypergrad.kkt(case.problem, x, y, duals, weighted=True).grad
    expected = jax.grad(lambda x: case.problem.upper(x, y_t(x), None))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_mask_is_right_on_both_sides_of_a_kink_and_the_margin_tells_it():
    case = problems.kink1()
    oracle = jax.jit(lambda x: hypergrad.ActiveSet()(case.problem, x, case.y0, Batch()))
    for x in (-1.0, -1e-3, 1e-3, 1.0):
        h = oracle(jnp.array(x))
        np.testing.assert_allclose(h.grad, x - 1 + 2 * (x > 0), atol=1e-12)
        np.testing.assert_allclose(h.sc_margin, abs(x), atol=1e-12)
    assert oracle(jnp.array(0.0)).sc_margin < 1e-6


def test_calls_are_counted():
    case = problems.kink1()
    duals = Duals(jnp.zeros(2), jnp.zeros(0))
    with jax.disable_jit(), oracles.counting() as calls:
        hypergrad.kkt(case.problem, case.x0, case.x0, duals)
    assert dict(calls) == {"upper_grad": 1, "dense_hessian": 1, "cross": 1}


# --- argmin with a lower set --------------------------------------------------------------------


SOLVERS = {
    "box": None,
    "half-open box": SQP,
    "simplex": None,
    "ball": None,
    "curve that moves": None,
    "row that moves": None,
    "two sets": None,
}


@pytest.mark.slow(unless=lambda name, second: (name, second) == ("curve that moves", False))
@pytest.mark.parametrize(
    ("name", "second"),
    [("curve that moves", False), ("simplex", False), *((name, True) for name in SOLVERS)],
)
def test_argmin_and_its_derivatives_through_a_lower_set(name, second):
    problem = Problem(cubic, curved, lower_set=SETS[name])

    def y(x):
        return lower.argmin(problem, x, jnp.zeros(2), solver=SOLVERS[name])

    def value(x):
        return cubic(x, y(x), None)

    def slope(fn, x):
        fn = jax.jit(fn)
        return jnp.stack([(fn(x + e) - fn(x - e)) / 2e-5 for e in 1e-5 * jnp.eye(2)], -1)

    jacobian = slope(y, X)
    np.testing.assert_allclose(jax.jit(jax.jacrev(y))(X), jacobian, atol=2e-7)
    if not second:
        return
    np.testing.assert_allclose(jax.jit(jax.jacfwd(y))(X), jacobian, atol=2e-7)
    bend = slope(jax.grad(value), X)
    np.testing.assert_allclose(jax.jit(jax.hessian(value))(X), bend, atol=2e-6)


@pytest.mark.slow
def test_argmin_with_a_bound_that_is_differentiated():
    """Also where losses and bounds close over what is differentiated."""

    def y(w, solver=None):
        pull = lambda x, y, batch: jnp.sum((y - 3 * w) ** 2)  # noqa: E731
        problem = Problem(pull, pull, lower_set=sets.Box(-jnp.inf, w))
        return jnp.sum(lower.argmin(problem, 0.0, jnp.zeros(2), solver=solver))

    for solver in (None, SQP):
        slope = jax.jit(jax.value_and_grad(functools.partial(y, solver=solver)))
        np.testing.assert_allclose(slope(2.0), (4.0, 2.0), atol=1e-8)  # at the bound
        np.testing.assert_allclose(slope(-2.0), (-12.0, 6.0), atol=1e-8)  # 3w < w: below it


def test_argmin_in_many_dimensions_forms_no_matrix():
    """A box of ten thousand entries, with products alone."""
    size = 10_000

    def pull(x, y, batch):
        return jnp.sum((y - x * jnp.linspace(-1, 1, size)) ** 2) / 2

    problem = Problem(pull, pull, lower_set=sets.Box(-0.5, 0.5))

    def y(x):
        return lower.argmin(problem, x, jnp.zeros(size), linear=linear.CG(5, 1e-12))

    slope = jax.jit(jax.jacfwd(y))(jnp.array(0.8))
    ramp = np.linspace(-1, 1, size)
    np.testing.assert_allclose(slope, np.where(np.abs(0.8 * ramp) < 0.5, ramp, 0), atol=1e-9)


def test_argmin_needs_a_projection_or_multipliers():
    problem = Problem(cubic, curved, lower_set=SETS["curve that moves"])
    with pytest.raises(ValueError, match=r"StayPut finds none; lower\.SQP"):
        lower.argmin(problem, X, jnp.zeros(2), solver=StayPut())


class StayPut(lower.AbstractLowerSolver):
    """Finds nothing, and no multipliers of it."""

    def solve(self, problem, x, y0, batch=None):
        return lower.LowerSolution(y0, jnp.array(0.0), 0)


# --- a linear term at random --------------------------------------------------------------------


def test_a_tilt_moves_the_lower_solution_and_little_else():
    case, q = problems.halfplane(), jnp.array([0.02, -0.01])
    tilted = lower.tilted(case.problem, q)
    y = jax.jit(lambda x: SQP.solve(tilted, x, case.y0).y)
    x = jnp.array([0.2, 0.1])
    np.testing.assert_allclose(y(x), x - q, atol=1e-12)
    for x in jnp.array([[1.0, 1.5], [0.5, 0.5], [-1.0, 0.3]]):
        assert trees.norm(y(x) - case.y_star(x)) <= trees.norm(q) + 1e-12
    assert jax.hessian(tilted.lower, 1)(x, x, None).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    draws = lower.tilt(jax.random.key(0), jnp.zeros(20_000), 0.1)
    np.testing.assert_allclose([draws.mean(), draws.std()], [0, 0.1], atol=3e-3)
