import re
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from bilevel import sets, trees

needs_qpax = pytest.mark.usefixtures("qpax")


@pytest.fixture
def qpax():
    return pytest.importorskip("qpax")


def tree(vector):
    """Five numbers as a scalar, a vector and a matrix leaf."""
    v = jnp.asarray(vector)
    return {"a": v[0], "b": (v[1:3], v[3:5].reshape(1, 2))}


def vector(z):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(z)])


def random_tree(rng, size=1.0):
    return tree(size * rng.normal(size=5))


def a_polyhedron():
    A = jnp.array([[1.0, 1, 0, 0, 0], [-1, 0, 2, 0, 1], [0, 0, 0, 1, -1], [0, -1, 0, 0, 0]])
    return sets.Polyhedron(A, jnp.array([1.0, 0.5, 0.3, 0.2]), jnp.ones((1, 5)), jnp.ones(1))


E2 = [[1.0, 2, 0, -1, 0], [0, 1, 1, 1, 1]]
SETS = {
    "free": sets.Free,
    "box of scalars": lambda: sets.Box(-0.5, 0.7),
    "box of trees": lambda: sets.Box(tree([-1, -0.2, -3, 0, -1]), tree([1.0, 0.2, 0, 0, 9])),
    "half-open box": lambda: sets.Box(lo=0.0),
    "ball": lambda: sets.Ball(1.5),
    "ball elsewhere": lambda: sets.Ball(0.5, tree([1.0, -1, 2, 0, 0])),
    "simplex": sets.Simplex,
    "large simplex": lambda: sets.Simplex(3),
    "capped simplex": lambda: sets.CappedSimplex(2),
    "affine": lambda: sets.Affine(E2, [1.0, 2.0]),
    "affine with dependent rows": lambda: sets.Affine([E2[0], E2[0], E2[1]], [1.0, 1.0, 2.0]),
    "equalities only": lambda: sets.Polyhedron(E=E2, d=[1.0, 2.0]),
    "polyhedron": a_polyhedron,
    "box and affine": lambda: sets.Intersection((sets.Box(-1, 1), sets.Affine(E2, [0.3, 0.2]))),
    "one true member": lambda: sets.Intersection((sets.Free(), sets.Ball(1.0))),
}


# Sets whose cases hold those of the others, which are left to the slow tier.
HARD = {
    "box of scalars",
    "box of trees",
    "half-open box",
    "ball elsewhere",
    "simplex",
    "affine with dependent rows",
    "polyhedron",
    "box and affine",
}


@needs_qpax
@pytest.mark.slow(unless=lambda name: name in HARD)
@pytest.mark.parametrize("name", SETS)
class TestEveryProjection:
    def test_lands_inside_and_stays(self, name):
        y, rng = SETS[name](), np.random.default_rng(0)
        project = eqx.filter_jit(y.project)
        for size in (0.1, 1.0, 100.0):
            point = project(random_tree(rng, size))
            assert y.projectable
            assert y.contains(point, tol=1e-9 * size)
            np.testing.assert_allclose(vector(project(point)), vector(point), atol=1e-9 * size)

    def test_is_the_nearest_point(self, name):
        # <z − Pz, w − Pz> <= 0 for every w in the set says exactly that; nonexpansive follows.
        y, rng = SETS[name](), np.random.default_rng(1)
        project = eqx.filter_jit(y.project)
        for _ in range(10):
            z, other = random_tree(rng, 3.0), random_tree(rng, 3.0)
            p, w = vector(project(z)), vector(project(other))
            assert (vector(z) - p) @ (w - p) <= 1e-8
            assert np.linalg.norm(p - w) <= np.linalg.norm(vector(z) - vector(other)) + 1e-9

    def test_keeps_structure_and_dtype(self, name):
        z = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32), random_tree(np.random.default_rng(3))
        )
        point = SETS[name]().project(z)
        assert jax.tree.structure(point) == jax.tree.structure(z)
        assert [p.dtype for p in jax.tree.leaves(point)] == [jnp.float32] * 3
        assert [p.shape for p in jax.tree.leaves(point)] == [p.shape for p in jax.tree.leaves(z)]
        assert SETS[name]().contains(point, tol=1e-4)

    def test_under_vmap_and_as_an_argument_of_jit(self, name):
        y, rng = SETS[name](), np.random.default_rng(4)
        points = [random_tree(rng) for _ in range(3)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
        many = jax.jit(jax.vmap(lambda y, z: y.project(z), in_axes=(None, 0)))(y, stacked)
        for i, z in enumerate(points):
            one = y.project(z)
            np.testing.assert_allclose(
                vector(jax.tree.map(lambda leaf, i=i: leaf[i], many)), vector(one), atol=1e-9
            )

    def test_derivative(self, name):
        y, rng = SETS[name](), np.random.default_rng(5)
        project = eqx.filter_jit(y.project)
        z, direction = random_tree(rng, 2.0), random_tree(rng)
        _, forward = jax.jvp(project, (z,), (direction,))
        ahead, behind = (project(trees.axpy(h, direction, z)) for h in (1e-6, -1e-6))
        differences = trees.scale(0.5e6, trees.sub(ahead, behind))
        np.testing.assert_allclose(vector(forward), vector(differences), atol=1e-6)
        _, pull = jax.vjp(project, z)  # P is a gradient, so its derivative is symmetric
        np.testing.assert_allclose(vector(pull(direction)[0]), vector(forward), atol=1e-9)


@pytest.mark.parametrize("make", SETS.values(), ids=SETS)
def test_rows_describe_a_linear_set(make):
    y, rng = make(), np.random.default_rng(0)
    if not y.linear:
        with pytest.raises(NotImplementedError, match="is not linear"):
            y.rows(random_tree(rng))
        return
    z = random_tree(rng)
    A, b, E, d = y.rows(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), z))
    assert A.dtype == jnp.float32
    A, b, E, d = (np.asarray(m) for m in y.rows(z))
    excess = [np.maximum(A @ vector(z) - b, 0), E @ vector(z) - d]
    np.testing.assert_allclose(y.violation(z), np.linalg.norm(np.concatenate(excess)), atol=1e-12)


# --- known projections ------------------------------------------------------------------------


def test_box_in_bfloat16():
    y = sets.Box(0.0, 0.1)
    point = y.project({"w": jnp.array([-1.0, 0.05, 3.0], jnp.bfloat16)})
    assert point["w"].dtype == jnp.bfloat16
    assert point["w"].tolist() == jnp.array([0, 0.05, 0.1], jnp.bfloat16).tolist()
    assert y.contains(point)
    assert y.violation(point).dtype == jnp.float32


def test_leaves_of_two_dtypes():
    z = {"a": jnp.array([3.0, -1.0], jnp.float32), "b": jnp.array([2.0])}
    for y in (sets.Box(-1, 1), sets.Ball(1.0), sets.Simplex(), sets.Affine([[1, 1, 1]], [0.5])):
        point = y.project(z)
        assert (point["a"].dtype, point["b"].dtype) == (jnp.float32, jnp.float64)
        assert y.contains(point)


def test_box_bounds_may_be_a_prefix():
    y = sets.Box({"w": 0.0, "b": -1.0}, {"w": 1.0, "b": jnp.array([0.0, 2.0])})
    z = {"w": (jnp.array([-3.0, 0.5]), jnp.array(4.0)), "b": jnp.array([5.0, 5.0])}
    point = y.project(z)
    assert point["w"][0].tolist() == [0.0, 0.5]
    assert point["w"][1] == 1.0
    assert point["b"].tolist() == [0.0, 2.0]
    np.testing.assert_allclose(y.violation(z), np.sqrt(9 + 9 + 25 + 9))


def test_ball_edge_cases():
    point = sets.Ball(0.0).project(jnp.array([3.0, 4.0]))
    assert point.tolist() == [0, 0]
    assert sets.Ball(0.0).project(jnp.zeros(2)).tolist() == [0, 0]
    np.testing.assert_allclose(sets.Ball(2.0).violation(jnp.array([3.0, 4.0])), 3.0)
    inside = jnp.array([0.1, 0.2])
    assert jnp.array_equal(sets.Ball(1.0, jnp.ones(2) / 3).project(inside), inside)
    assert jax.grad(sets.Ball(1.0).violation)(jnp.zeros(2)).tolist() == [0, 0]


def test_simplex_by_hand():
    y = sets.Simplex()
    np.testing.assert_allclose(y.project(jnp.array([0.6, 0.6, -9])), [0.5, 0.5, 0], atol=1e-15)
    np.testing.assert_allclose(y.project(jnp.array([5.0, 1.0])), [1.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(y.project(jnp.zeros(4)), jnp.full(4, 0.25), atol=1e-15)
    np.testing.assert_allclose(y.project(jnp.full(3, 1e8)), jnp.full(3, 1 / 3), atol=1e-15)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_simplex_against_optax(scale):
    from optax.projections import projection_simplex

    z = jnp.asarray(np.random.default_rng(0).normal(size=20))
    with jax.numpy_dtype_promotion("standard"):
        expected = projection_simplex(z, scale)
    np.testing.assert_allclose(sets.Simplex(scale).project(z), expected, atol=1e-14)


@pytest.mark.parametrize(("m", "scale"), [(1, 1.0), (7, 3.0), (19, 30.0), (20, 1.0)])
def test_capped_simplex_against_a_quadratic_program(m, scale):
    from scipy.optimize import minimize

    z = scale * np.random.default_rng(m).normal(size=20)
    found = minimize(
        lambda w: ((w - z) ** 2).sum() / 2,
        np.full(20, m / 20),
        jac=lambda w: w - z,
        bounds=[(0, 1)] * 20,
        constraints={"type": "eq", "fun": lambda w: w.sum() - m, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 1000},
    )
    projected = np.asarray(sets.CappedSimplex(m).project(jnp.asarray(z)))
    np.testing.assert_allclose(projected, found.x, atol=1e-7)
    np.testing.assert_allclose(projected.sum(), m, atol=1e-12)


def test_capped_simplex_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="m is 4, but z has 3 entries"):
        sets.CappedSimplex(4).project(jnp.zeros(3))


# --- polyhedra --------------------------------------------------------------------------------


@needs_qpax
def test_box_and_simplex_written_as_polyhedra():
    n, rng, eye = 4, np.random.default_rng(0), np.eye(4)
    box = sets.Polyhedron(np.vstack([eye, -eye]), np.ones(2 * n))
    simplex = sets.Polyhedron(-eye, np.zeros(n), np.ones((1, n)), np.ones(1))
    for scale in (0.1, 1, 30, 1e4):
        z = jnp.asarray(scale * rng.normal(size=n))
        np.testing.assert_allclose(box.project(z), sets.Box(-1, 1).project(z), atol=1e-11 * scale)
        np.testing.assert_allclose(
            simplex.project(z), sets.Simplex().project(z), atol=1e-11 * max(scale, 1)
        )


@needs_qpax
def test_polyhedron_against_scipy():
    y, rng = a_polyhedron(), np.random.default_rng(0)
    A, b, E, d = (np.asarray(m) for m in (y.A, y.b, y.E, y.d))
    for _ in range(5):
        z = 2 * rng.normal(size=5)
        found = minimize(
            lambda w, z=z: 0.5 * np.sum((w - z) ** 2),
            np.zeros(5),
            jac=lambda w, z=z: w - z,
            method="SLSQP",
            constraints=[
                {"type": "ineq", "fun": lambda w: b - A @ w, "jac": lambda w: -A},
                {"type": "eq", "fun": lambda w: E @ w - d, "jac": lambda w: E},
            ],
            options={"ftol": 1e-14, "maxiter": 300},
        )
        np.testing.assert_allclose(y.project(jnp.asarray(z)), found.x, atol=1e-6)


@needs_qpax
def test_weakly_active_and_redundant_rows():
    corner = sets.Polyhedron([[1.0, 0], [0, 1], [1, 1], [1, 0]], [1.0, 1.0, 2.0, 1.0])
    np.testing.assert_allclose(corner.project(jnp.array([3.0, 2.0])), [1, 1], atol=1e-12)
    np.testing.assert_allclose(corner.project(jnp.array([1.0, 0.2])), [1, 0.2], atol=1e-9)
    np.testing.assert_allclose(corner.project(jnp.array([1.0, 1.0])), [1, 1], atol=1e-9)


@needs_qpax
def test_an_infinite_bound_switches_its_row_off():
    y = sets.Polyhedron([[1.0, 0], [0, 1]], [np.inf, 1.0])
    np.testing.assert_allclose(y.project(jnp.array([7.0, 5.0])), [7.0, 1.0], atol=1e-12)


@needs_qpax
def test_entries_that_follow_x():
    # y >= x in both components: the projection is max(z, x).
    y = sets.Polyhedron(A=-jnp.eye(2), b=lambda x: -x)
    x, z = jnp.array([0.5, -2.0]), jnp.array([0.0, 1.0])
    assert y.moves
    assert y.linear
    assert y.projectable
    np.testing.assert_allclose(y.project(z, x), [0.5, 1.0], atol=1e-12)
    np.testing.assert_allclose(y.violation(z, x), 0.5)
    np.testing.assert_allclose(jax.jacrev(y.project, argnums=1)(z, x), np.diag([1.0, 0]), atol=1e-9)
    np.testing.assert_allclose(jax.jacfwd(y.project, argnums=0)(z, x), np.diag([0, 1.0]), atol=1e-9)


@needs_qpax
def test_rows_that_turn_with_x():
    # The half-plane a(x)'y <= 1 with a = (cos x, sin x); z outside goes to z − (a'z − 1) a.
    y = sets.Polyhedron(A=lambda x: jnp.stack([jnp.cos(x), jnp.sin(x)])[None], b=[1.0])

    def by_hand(x, z):
        a = jnp.stack([jnp.cos(x), jnp.sin(x)])
        return z - (a @ z - 1) * a

    x, z = jnp.array(0.4), jnp.array([2.0, 3.0])
    np.testing.assert_allclose(y.project(z, x), by_hand(x, z), atol=1e-12)
    np.testing.assert_allclose(
        jax.jacfwd(lambda x: y.project(z, x))(x), jax.jacfwd(by_hand)(x, z), atol=1e-9
    )


def test_without_qpax_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "qpax", None)
    jax.clear_caches()  # of a projection of the same shapes, which would not import it again
    with pytest.raises(ImportError, match=re.escape("pip install bilevel[qp]")):
        sets.Polyhedron([[1.0]], [1.0]).project(jnp.ones(1))
    point = sets.Polyhedron(E=[[1.0, 1.0]], d=[1.0]).project(jnp.zeros(2))
    np.testing.assert_allclose(point, [0.5, 0.5])


# --- coupled sets and intersections -----------------------------------------------------------


def test_coupled():
    y = sets.Coupled(lambda x, y: {"sum": y["a"] + x, "each": y["b"] - 1})
    point = {"a": jnp.array(1.0), "b": jnp.array([3.0, -5.0])}
    assert not y.projectable
    assert y.moves
    np.testing.assert_allclose(y.violation(point, jnp.array(1.0)), np.sqrt(4 + 4))
    assert not y.contains(point, jnp.array(1.0))
    assert y.contains({"a": jnp.array(-1.0), "b": jnp.zeros(2)}, jnp.array(1.0))
    gradient = jax.grad(y.violation)({"a": jnp.array(-1.0), "b": jnp.zeros(2)}, jnp.array(1.0))
    assert vector(gradient).tolist() == [0, 0, 0]


def test_intersection_traits():
    coupled, box, ball = sets.Coupled(lambda x, y: y), sets.Box(0, 1), sets.Ball(1.0)
    assert sets.Intersection(()).project(jnp.ones(2)).tolist() == [1, 1]
    assert sets.Intersection((box, coupled)).moves
    assert not sets.Intersection((box, coupled)).projectable
    assert not sets.Intersection((box, ball)).projectable
    assert sets.Intersection((box, sets.Simplex())).linear
    z = jnp.array([3.0, 0.0])
    np.testing.assert_allclose(sets.Intersection((box, ball)).violation(z), np.sqrt(8))


# --- construction -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: sets.Box(1.0, 0.0), "lo exceeds hi"),
        (lambda: sets.Box({"a": jnp.array([0, 2.0])}, 1.0), "lo exceeds hi"),
        (lambda: sets.Box(jnp.zeros(2), jnp.ones(3)), r"lo has shape \(2,\) but hi has shape"),
        (lambda: sets.Box({"a": 0.0}, {"b": 1.0}), "lo is a tree"),
        (lambda: sets.Ball(-1.0), "radius is -1.0; zero or more"),
        (lambda: sets.Ball(jnp.ones(2)), r"radius has shape \(2,\); one number"),
        (lambda: sets.Simplex(0), "scale is 0; a positive number"),
        (lambda: sets.Affine(jnp.ones((2, 3)), jnp.ones(3)), "E has 2 rows but d has 3 entries"),
        (lambda: sets.Affine(jnp.ones(3), jnp.ones(1)), "a matrix is needed"),
        (lambda: sets.Polyhedron(A=jnp.ones((2, 3))), "A is given without b"),
        (lambda: sets.Polyhedron(d=jnp.ones(3)), "d is given without E"),
        (lambda: sets.Polyhedron(), "give A and b, or E and d"),
        (lambda: sets.Polyhedron(jnp.ones((2, 3)), jnp.ones(1)), "A has 2 rows but b has 1"),
        (
            lambda: sets.Polyhedron(jnp.ones((2, 3)), jnp.ones(2), jnp.ones((1, 2)), jnp.ones(1)),
            "different numbers of columns",
        ),
    ],
)
def test_wrong_arguments(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_wrong_kinds():
    with pytest.raises(TypeError, match=r"a function h\(x, y\) is needed"):
        sets.Coupled(3.0)  # pyright: ignore
    with pytest.raises(TypeError, match="is not a set"):
        sets.Intersection((lambda x: x,))  # pyright: ignore


def test_wrong_points():
    z = jnp.zeros(4)
    with pytest.raises(ValueError, match=r"lo has shape \(3,\) where a leaf has \(4,\)"):
        sets.Box(jnp.zeros(3), 1.0).project(z)
    with pytest.raises(ValueError, match="lo is a tree"):
        sets.Box({"a": jnp.zeros(3)}, 1.0).project(z)
    with pytest.raises(ValueError, match="do not fit a variable of 4 entries"):
        sets.Affine(jnp.ones((1, 3)), jnp.ones(1)).project(z)
    with pytest.raises(ValueError, match="pass x after the point"):
        sets.Polyhedron(jnp.ones((1, 4)), lambda x: x).violation(z)
    with pytest.raises(ValueError, match="pass x after y"):
        sets.Coupled(lambda x, y: x).violation(z)
    with pytest.raises(NotImplementedError, match="handles coupled constraints"):
        sets.Coupled(lambda x, y: x).project(z)
    with pytest.raises(NotImplementedError, match="Intersection of Box, Ball has no projection"):
        sets.Intersection((sets.Box(0, 1), sets.Ball(1.0))).project(z)


def test_repr_shows_numbers():
    assert repr(sets.Free()) == "Free()"
    assert repr(sets.Box(-0.5, jnp.array([0.1, 2], jnp.float32))) == "Box(lo=-0.5, hi=[0.1, 2.0])"
    assert repr(sets.Box({"w": 0.0}, np.inf)) == "Box(lo={'w': 0.0}, hi=inf)"
    assert repr(sets.Ball(2.0)) == "Ball(radius=2.0)"
    big = sets.Affine(jnp.ones((3, 7)), jnp.ones(3))
    assert repr(big) == "Affine(E=float64[3, 7], d=[1.0, 1.0, 1.0])"

    def capacity(x, y):
        return y - x

    both = sets.Intersection((sets.Coupled(capacity), sets.Simplex()))
    assert repr(both) == "Intersection(sets=(Coupled(h=capacity), Simplex(scale=1.0)))"
    assert repr(sets.Polyhedron([[1.0]], abs)) == "Polyhedron(A=[[1.0]], b=abs)"


def test_sets_are_pytrees():
    y = sets.Polyhedron(-jnp.eye(2), lambda x: -x)
    assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(y))
    assert sets.Box(0.0, 1.0).lo.weak_type  # a Python number takes the dtype of its leaf
    radii = jnp.array([1.0, 2.0])
    points = jax.vmap(lambda r: sets.Ball(r).project(jnp.array([3.0, 4.0])))(radii)
    np.testing.assert_allclose(jnp.linalg.norm(points, axis=1), radii)


def test_a_new_bound_compiles_nothing():
    traces = 0

    @jax.jit
    def project(y, z):
        nonlocal traces
        traces += 1
        return y.project(z)

    for hi in (1.0, 2.0, 3.0):
        assert project(sets.Box(0.0, hi), jnp.array(9.0)) == hi
    assert traces == 1


def test_split_takes_the_first_simple_member_at_any_depth():
    box, rows = sets.Box(0.0, 1.0), sets.Polyhedron(jnp.ones((1, 2)), jnp.ones(1))
    coupled = sets.Coupled(lambda x, y: x + y)
    nested = sets.Intersection((sets.Free(), sets.Intersection((rows, box)), coupled))
    simple, rest = sets.split(nested)
    assert simple is box
    assert rest.sets == (rows, coupled)
    assert sets.split(coupled) == (sets.Free(), coupled)
    assert sets.split(box).rest == sets.Free()
    assert not nested.simple
    assert sets.Intersection((sets.Intersection((box,)), sets.Free())).simple


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("where", [sets.Free(), sets.Box(0.0, 1.0)], ids=["free", "box"])
def test_a_violation_has_the_precision_of_its_point(where, dtype):
    assert where.violation(jnp.ones(2, dtype)).dtype == dtype
