"""Many lower problems that share x: their data, their oracles and the methods that draw a few."""

import collections
import dataclasses

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import oracles, problems
from bilevel.estimators import STORM
from bilevel.methods import RSVRB, SOBA, SVRB, BSVRBv1, BSVRBv2
from bilevel.methods.blocks import blocks
from bilevel.problem import Batch, Draws
from bilevel.schedules import Polynomial

KEY = jax.random.key(0)
M, N = 4, 8  # blocks, and rows in each


def last(method, case, steps, *, problem=None, data=None, state=None, key=KEY):
    case = case if problem is None else dataclasses.replace(case, problem=problem)
    state = method.init(case.problem, case.x0, case.y0, key=key) if state is None else state
    return cases.run(method, case, steps, state=state, data=data, key=key)


def stacked(case):
    """The same problem, with all blocks as one lower problem of twelve unknowns."""
    return bl.Problem(case.problem.upper, case.problem.lower)


# --- recorded runs ------------------------------------------------------------------------------

TRAJECTORIES = {  # method, x after 10 steps, x after 100 (spec 8.3)
    "RSVRB": (
        lambda: RSVRB(0.05, 0.4, 0.3),
        (-0.117140547515, 0.474787676752),
        (-0.684679062925, 0.186229809026),
    ),
    "BSVRBv1": (
        lambda: BSVRBv1(0.05, 0.4, 0.3, 0.6),
        (-0.117140547515, 0.474787676752),
        (-0.684679062925, 0.186229809026),
    ),
    "BSVRBv1 stale": (
        lambda: BSVRBv1(0.05, 0.4, 0.3, 0.6, stale=True),
        (-0.117140547515, 0.474787676752),
        (-0.684679062925, 0.186229809026),
    ),
    "BSVRBv2": (
        lambda: BSVRBv2(0.01, 0.4, 0.4, 0.3, 0.6),
        (0.803808160048, -0.729811209328),
        (-0.275083059807, 0.422241227897),
    ),
    "BSVRBv2 catching up": (  # nothing is ever missed
        lambda: BSVRBv2(0.01, 0.4, 0.4, 0.3, 0.6, radius=50.0, catch_up=True),
        (0.803808160048, -0.729811209328),
        (-0.275083059807, 0.422241227897),
    ),
}


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectory(name):
    make, after_10, after_100 = TRAJECTORIES[name]
    case, method = problems.blocks(), make()
    at_10 = last(method, case, 10)
    at_100 = last(method, case, 90, state=at_10)
    np.testing.assert_allclose(at_10.x, after_10, rtol=0, atol=6e-13)
    np.testing.assert_allclose(at_100.x, after_100, rtol=0, atol=6e-13)


LEVELS = {  # method, mean of ‖∇l‖² over the last tenth of 8000 steps (spec 8.4)
    "BSVRBv1": (lambda a: BSVRBv1(_third(0.05), _third(0.2), a, a, convexity=0.2), 9.4e-4),
    "BSVRBv2": (
        lambda a: BSVRBv2(_third(0.02), _third(0.2), _third(0.2), a, a, radius=50.0),
        7.0e-4,
    ),
    "RSVRB": (
        lambda a: RSVRB(_third(0.05), _third(0.2), Polynomial(1.0, 2 / 3), 0.2),
        3.4e-3,
    ),
}


def _third(scale):
    return Polynomial(scale, 1 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEVELS)
def test_level_under_noise(name):
    """Two of four blocks and one row of each a step; 12 seeds by vmap, within a factor of four."""
    make, recorded = LEVELS[name]
    case, method = problems.blocks_noise(), make(Polynomial(1.0, 2 / 3, 2.0))
    data = bl.Data(*case.data, blocks=2, batch_size=1, order="replacement")

    def level(key):
        start = last(method, case, 7200, data=data, key=key)

        def body(state, _):
            state = last(method, case, 1, data=data, key=key, state=state)
            return state, (case.gradient(state.x) ** 2).sum()

        return jax.lax.scan(body, start, length=800)[1].mean()

    levels = jax.jit(jax.vmap(level))(jax.random.split(jax.random.key(1), 12))
    assert recorded / 4 < float(levels.mean()) < 4 * recorded


# --- against the formulas, written out once more in NumPy ----------------------------------------


class Quadratics:
    """Everything about the drawn blocks of one batch, by hand."""

    def __init__(self, batch):
        self.f, _ = jax.tree.map(np.asarray, problems.quadratic.coefficients())
        self.blocks = np.asarray(batch.index.lower).tolist()
        rows = {**batch.lower, **batch.upper}
        self.rows = {name: np.asarray(a).mean(axis=1) for name, a in rows.items()}

    def of(self, j, x, y):
        """`f_x, f_y, g_y, G_yy, G_xy` of the j-th drawn block."""
        r, f = {name: a[j] for name, a in self.rows.items()}, self.f
        f_x, f_y = f.Q @ x + r["q"] + f.R @ y, f.P @ y + r["p"] + f.R.T @ x
        return f_x, f_y, r["H"] @ y + r["C"] @ x + r["c"], r["H"], r["C"].T


def floored(matrix, floor):
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return vectors @ np.diag(np.maximum(values, floor)) @ vectors.T


A, BETA, FLOOR, X_STEP, Y_STEP = 0.4, 0.3, 0.6, 0.02, 0.2
GAMMA = (M - 2) / (2 * (1 - A)) + 1 - A


def by_hand_v1(batches, x, y):
    s, H, h, x_old, y_old = {}, {}, None, x, y.copy()
    for batch in batches:
        G = G_old = 0.0
        for j, b in enumerate(batch.blocks):
            f_x, f_y, g_y, G_yy, G_xy = batch.of(j, x, y[b])
            f_x_old, f_y_old, g_y_old, G_yy_old, G_xy_old = batch.of(j, x_old, y_old[b])
            if b in s:
                before = H[b]
                s[b] = (1 - A) * s[b] + A * g_y + GAMMA * (g_y - g_y_old)
                H[b] = floored((1 - A) * H[b] + A * G_yy + GAMMA * (G_yy - G_yy_old), FLOOR)
            else:
                s[b], H[b] = g_y, floored(G_yy, FLOOR)
                before = H[b]
            G += (f_x - G_xy @ np.linalg.solve(H[b], f_y)) / 2
            G_old += (f_x_old - G_xy_old @ np.linalg.solve(before, f_y_old)) / 2
        h = G if h is None else G + (1 - BETA) * (h - G_old)
        x_old, y_old = x, y.copy()
        x = x - X_STEP * h
        for b in s:
            y[b] = y[b] - Y_STEP * s[b]
    return x, y


def by_hand_v2(batches, x, y, catch_up=False, radius=np.inf):
    s, u, v, h, x_old, y_old = {}, {}, np.zeros_like(y), None, x, y.copy()
    v_old, missed = v.copy(), np.zeros(M)
    for batch in batches:
        G = G_old = 0.0
        for j, b in enumerate(batch.blocks):
            f_x, f_y, g_y, G_yy, G_xy = batch.of(j, x, y[b])
            f_x_old, f_y_old, g_y_old, G_yy_old, G_xy_old = batch.of(j, x_old, y_old[b])
            r, r_old = G_yy @ v[b] - f_y, G_yy_old @ v_old[b] - f_y_old
            if b in s:
                s[b] = (1 - A) * s[b] + A * g_y + GAMMA * (g_y - g_y_old)
                u[b] = (1 - A) * u[b] + A * r + GAMMA * (r - r_old)
            else:
                s[b], u[b] = g_y, r
            G += (f_x - G_xy @ v[b]) / 2
            G_old += (f_x_old - G_xy_old @ v_old[b]) / 2
        h = G if h is None else G + (1 - BETA) * (h - G_old)
        x_old, y_old, v_old = x, y.copy(), v.copy()
        x = x - X_STEP * h
        missed += 1
        for b in batch.blocks if catch_up else s:
            times = missed[b] if catch_up else 1
            y[b] = y[b] - Y_STEP * times * s[b]
            v[b] = v[b] - Y_STEP * times * u[b]
            v[b] *= min(1, radius / np.linalg.norm(v[b]))
        missed[batch.blocks] = 0
    return x, y


def by_hand_rsvrb(batches, x, y, key=KEY):
    T = [(np.zeros(2), np.zeros(3), np.zeros(3), np.eye(3), np.zeros((2, 3))) for _ in range(M)]
    h, x_old, y_old = None, x, y.copy()

    def mean(T, chosen):
        each = [U - J @ np.linalg.solve(H, V) for U, V, _, H, J in (T[b] for b in chosen)]
        return np.mean(each, axis=0)

    for k, batch in enumerate(batches):
        keep = 0 if k == 0 else 1 - BETA
        before, T = T, [[keep * part for part in factors] for factors in T]
        for j, b in enumerate(batch.blocks):
            new, old = batch.of(j, x, y[b]), batch.of(j, x_old, y_old[b])
            T[b] = [t + M / 2 * (n - keep * o) for t, n, o in zip(T[b], new, old, strict=True)]
        for factors in T:
            factors[3] = floored(factors[3], FLOOR)
        key, now = jax.random.split(key)
        again = np.asarray(blocks.draw(now, M, 2))
        h = mean(T, again) + (0 if k == 0 else keep * (h - mean(before, again)))
        x_old, y_old = x, y.copy()
        x = x - X_STEP * h
        y = y - Y_STEP * np.stack([factors[2] for factors in T])
    return x, y


BY_HAND = {
    "BSVRBv1": (BSVRBv1(X_STEP, Y_STEP, A, BETA, convexity=FLOOR), by_hand_v1),
    "BSVRBv2": (BSVRBv2(X_STEP, Y_STEP, Y_STEP, A, BETA), by_hand_v2),
    "BSVRBv2 in a ball": (
        BSVRBv2(X_STEP, Y_STEP, Y_STEP, A, BETA, radius=1.5),
        lambda *given: by_hand_v2(*given, radius=1.5),
    ),
    "BSVRBv2 catching up": (
        BSVRBv2(X_STEP, Y_STEP, Y_STEP, A, BETA, catch_up=True),
        lambda *given: by_hand_v2(*given, catch_up=True),
    ),
    "RSVRB": (RSVRB(X_STEP, Y_STEP, BETA, FLOOR), by_hand_rsvrb),
}


@pytest.mark.slow(unless=lambda name: name == "BSVRBv1")
@pytest.mark.parametrize("name", BY_HAND)
def test_steps_on_two_of_four_blocks_are_those_of_the_formulas(name):
    method, by_hand = BY_HAND[name]
    case, steps = problems.blocks_noise(), 25
    data = bl.Data(*case.data, blocks=2, batch_size=3)
    feed = data.feed(KEY, method.draws(case.problem))
    batches = [Quadratics(feed.batch(jnp.int32(k))) for k in range(steps)]
    x, y = by_hand(batches, np.asarray(case.x0), np.array(case.y0))
    found = last(method, case, steps, data=data)
    np.testing.assert_allclose(found.x, x, rtol=1e-10)
    np.testing.assert_allclose(found.y, y, rtol=1e-10)


# --- equivalences (spec 7) ------------------------------------------------------------------------


@pytest.mark.slow(unless=lambda weight: weight == 0.4)
@pytest.mark.parametrize("weight", [0.4, 0.0, 1.0])
def test_rsvrb_with_one_block_is_svrb(weight):
    """The average along which x moves telescopes, on samples too."""
    case = problems.quad_noise()
    data = bl.Data(*case.data, batch_size=2, order="replacement")
    one = last(RSVRB(0.02, 0.3, weight, 0.5), case, 40, data=data)
    other = last(SVRB(0.02, 0.3, weight, 0.5), case, 40, data=data)
    np.testing.assert_allclose(one.x, other.x, rtol=1e-10)
    np.testing.assert_allclose(one.y, other.y, rtol=1e-10)


@pytest.mark.slow(unless=lambda problem: problem == "curv")
@pytest.mark.parametrize("problem", ["curv", "blocks"])
def test_without_noise_rsvrb_is_bsvrb_v1_is_svrb(problem):
    case = problems.ALL[problem]()
    ends = [
        last(RSVRB(0.02, 0.3, 0.2), case, 60),
        last(BSVRBv1(0.02, 0.3, 0.7, 0.1), case, 60),
        last(SVRB(0.02, 0.3, 0.5), case, 60),
    ]
    for end in ends[1:]:
        np.testing.assert_allclose(end.x, ends[0].x, rtol=1e-10)
        np.testing.assert_allclose(end.y, ends[0].y, rtol=1e-10)


METHODS = {
    "RSVRB": lambda: RSVRB(0.02, 0.3, 0.4),
    "BSVRBv1": lambda: BSVRBv1(0.02, 0.3, 0.4, 0.2),
    "BSVRBv2": lambda: BSVRBv2(0.01, 0.3, 0.3, 0.4, 0.2),
}


@pytest.mark.slow(unless=lambda name: name == "RSVRB")
@pytest.mark.parametrize("name", METHODS)
def test_blocks_are_the_stacked_problem(name):
    """All blocks in every step is one lower problem with a block-diagonal Hessian."""
    case, method = problems.blocks_noise(), METHODS[name]()
    data = bl.Data(*case.data)
    one = last(method, case, 30, data=data)
    other = last(method, case, 30, data=data, problem=stacked(case))
    drawn = last(method, case, 30, data=bl.Data(*case.data, blocks=M))
    for found in (other, drawn):
        np.testing.assert_allclose(found.x, one.x, rtol=1e-10)
        np.testing.assert_allclose(found.y, one.y, rtol=1e-10)


def test_bsvrb_v2_with_one_block_is_soba_with_storm_directions():
    case, a, beta = problems.quad_noise(), 0.4, 0.2
    data = bl.Data(*case.data, batch_size=2, order="replacement")
    method = BSVRBv2(0.01, 0.3, 0.2, a, beta)
    feed, storm = data.feed(KEY, method.draws(case.problem)), STORM((beta, a, a))

    def directions(point, sample):
        x, y, v = point
        _, f_x, f_y = oracles.upper_grads(case.problem, x, y, sample.upper)
        g_y, hvp, cross = oracles.lower_products(case.problem, x, y, v, sample.lower)
        return f_x - cross, g_y, hvp - f_y

    point = case.x0, case.y0, jnp.zeros(3)
    memory = storm.init(directions, point, feed.batch(jnp.int32(0)))
    for k in range(20):
        moves, memory = storm.step(directions, point, feed.batch(jnp.int32(k)), memory, k)
        steps = zip(point, (0.01, 0.3, 0.2), moves, strict=True)
        point = tuple(p - size * move for p, size, move in steps)
    found = last(method, case, 20, data=data)
    for a, b in zip((found.x, found.y, found.v), point, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.slow(unless=lambda name: name == "RSVRB")
@pytest.mark.parametrize("name", ["RSVRB", "BSVRBv1", "BSVRBv2"])
def test_two_halves_equal_one_run_on_blocks(name):
    case, method = problems.blocks_noise(), METHODS[name]()
    data = bl.Data(*case.data, blocks=3, batch_size=2)
    whole = last(method, case, 20, data=data)
    again = last(method, case, 13, data=data, state=last(method, case, 7, data=data))
    np.testing.assert_array_equal(whole.x, again.x)
    np.testing.assert_array_equal(whole.y, again.y)


def test_ordinary_methods_solve_the_same_problem_with_full_data():
    case = problems.blocks_noise()
    found = last(SOBA(0.02, 0.3, 0.3), case, 2000, data=bl.Data(*case.data))
    np.testing.assert_allclose(found.x, case.x_star, atol=1e-6)


def test_the_adjoint_of_bsvrb_v2_is_that_of_the_whole_problem():
    case = problems.blocks()
    found = last(BSVRBv2(0.02, 0.3, 0.3), case, 3000)
    _, f_y = jax.grad(case.problem.upper, argnums=(0, 1))(found.x, found.y, None)
    hvp = oracles.hvp(case.problem, found.x, found.y, found.v, None)
    np.testing.assert_allclose(hvp, f_y, atol=1e-6)


# --- the data -------------------------------------------------------------------------------------

NUMBERED = np.arange(M * N).reshape(M, N)  # row i of block b is 8 b + i


def drawn(steps, draws=1, **settings):
    feed = bl.Data(NUMBERED, -NUMBERED, **settings).feed(KEY, Draws(draws, draws))

    def at(k):
        batch = feed.batch(k)
        stack = (lambda half: half.stack(draws)) if draws > 1 else (lambda half: half[None])
        return tuple(map(stack, (batch.upper, batch.lower, batch.index.upper, batch.index.lower)))

    return [np.asarray(a) for a in jax.jit(jax.vmap(at))(jnp.arange(steps))]


@pytest.mark.parametrize("order", ["epochs", "replacement"])
def test_the_same_blocks_at_both_levels_with_rows_of_their_own(order):
    upper, lower, index, same = drawn(400, blocks=3, batch_size=2, order=order)
    assert upper.shape == lower.shape == (400, 1, 3, 2)
    assert index.shape == (400, 1, 3)
    np.testing.assert_array_equal(index, same)
    np.testing.assert_array_equal(upper // N, np.broadcast_to(index[..., None], upper.shape))
    np.testing.assert_array_equal(-lower // N, np.broadcast_to(index[..., None], upper.shape))
    assert all(len(set(row)) == 3 for row in index.reshape(-1, 3).tolist())
    assert (upper != -lower).any()
    for values in (upper, -lower):
        share = np.bincount(values.ravel(), minlength=M * N) / values.size
        np.testing.assert_allclose(share, 1 / (M * N), rtol=0.5)
    if order == "epochs":  # no row twice in a batch
        assert (upper[..., 0] != upper[..., 1]).all()


def test_every_set_of_blocks_is_as_likely():
    _, _, index, _ = drawn(1200, blocks=2)
    counts = collections.Counter(tuple(sorted(row)) for row in index.reshape(-1, 2).tolist())
    assert len(counts) == 6
    np.testing.assert_allclose(np.array(list(counts.values())) / 1200, 1 / 6, rtol=0.25)


def test_draws_of_a_step_are_independent_sets():
    _, _, index, _ = drawn(1200, draws=2, blocks=2)
    pairs = collections.Counter(tuple(map(tuple, np.sort(step, axis=1).tolist())) for step in index)
    assert len(pairs) == 36
    assert max(pairs.values()) < 3 * 1200 / 36


def test_whole_blocks_without_a_batch_size():
    upper, lower, index, _ = drawn(5, blocks=2)
    np.testing.assert_array_equal(upper, NUMBERED[index])
    np.testing.assert_array_equal(lower, -NUMBERED[index])
    per_block = bl.Data(np.arange(4.0), None, blocks=2).feed(KEY, Draws(1, 1)).batch(jnp.int32(0))
    np.testing.assert_array_equal(per_block.upper, per_block.index.upper)
    assert per_block.lower is None


def test_all_blocks_come_in_their_order():
    _, _, index, _ = drawn(3, blocks=M, batch_size=2)
    np.testing.assert_array_equal(index[:, 0], np.tile(np.arange(M), (3, 1)))


BAD_DATA = {
    "too many": (lambda: bl.Data(NUMBERED, blocks=5), "blocks is 5, but Data.upper holds 4"),
    "none": (lambda: bl.Data(NUMBERED, blocks=0), "at least 1"),
    "a sampler": (lambda: bl.Data(lambda key: 0.0, blocks=1), "Data.upper is a sampler"),
    "unequal": (lambda: bl.Data(NUMBERED, NUMBERED[:3], blocks=2), "upper holds 4.*lower 3"),
    "rows": (lambda: bl.Data((NUMBERED, NUMBERED[:, :5]), blocks=2, batch_size=2), "same lengths"),
    "no rows": (lambda: bl.Data(NUMBERED[:, 0], blocks=2, batch_size=2), "leading axes"),
    "batch": (lambda: bl.Data(NUMBERED, blocks=2, batch_size=9), "9.*8 rows in each block"),
    "order": (lambda: bl.Data(NUMBERED, blocks=2, order="partition"), "epochs or replacement"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_blocks_are_refused(name):
    make, sentence = BAD_DATA[name]
    with pytest.raises(ValueError, match=sentence):
        make()


# --- wrong uses -----------------------------------------------------------------------------------


def refused(problem=None, method=None, y0=None, data=None):
    case = problems.blocks_noise()
    data = bl.Data(*case.data, blocks=2, batch_size=2) if data is None else data
    problem = case.problem if problem is None else problem
    method = BSVRBv2() if method is None else method
    y0 = case.y0 if y0 is None else y0
    bl.solve(problem, method, case.x0, y0, data=data, steps=2, progress=False)


def halves(case, *rows):
    return tuple(jax.tree.map(lambda leaf: leaf[rows], half) for half in case.data)


REFUSED = {
    "an ordinary method": (
        lambda case: {"method": SOBA()},
        r"SOBA cannot use Data\(blocks=2\).*:",
    ),
    "no blocks declared": (lambda case: {"problem": stacked(case)}, "declares none.*blocks=m"),
    "y of other rows": (lambda case: {"y0": case.y0[:3]}, r"y0 is float64\[3,3\].*blocks=4"),
    "data of other blocks": (
        lambda case: {"data": bl.Data(*halves(case, slice(3)), blocks=2)},
        "Data.upper = .*leading axis of 4",
    ),
    "rows without blocks": (
        lambda case: {"data": bl.Data(*case.data, batch_size=2)},
        "rows of the leading axis, which are the 4 blocks",
    ),
    "a loss of all blocks": (
        lambda case: {"problem": bl.Problem(_upper_of_four, case.problem.lower, blocks=4)},
        "Problem.upper, given 2 of 4 blocks, could not be evaluated",
    ),
}


def _upper_of_four(x, y, batch):
    return (jnp.ones((4, 3)) * y).mean() + x.sum()


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_uses_are_refused(name):
    make, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        refused(**make(problems.blocks_noise()))
    refused()  # nothing is wrong with the rest


def test_run_refuses_what_solve_refuses():
    case, method = problems.blocks_noise(), SOBA()
    state = method.init(case.problem, case.x0, case.y0)
    data = bl.Data(*case.data, blocks=2)
    for given in (data, data.feed(KEY, Draws(1, 1))):
        with pytest.raises(bl.methods.Unsupported, match="takes all blocks"):
            bl.run(case.problem, method, state, data=given, steps=1)


@pytest.mark.parametrize("blocks", [0, -1, 2.0, True, "four"])
def test_a_number_of_blocks_is_needed(blocks):
    with pytest.raises(ValueError, match="number of lower problems"):
        bl.Problem(_upper_of_four, _upper_of_four, blocks=blocks)


def test_solve_counts_the_rows_and_certifies_on_all_blocks():
    case = problems.blocks_noise()
    data = bl.Data(*case.data, blocks=2, batch_size=3)
    method = BSVRBv1(0.05, 0.3)
    result = bl.solve(case.problem, method, case.x0, case.y0, data=data, steps=50, progress=False)
    assert result.stats.samples == {"upper": 300, "lower": 300}
    expected = bl.certificates.certify(case.problem, result.x, result.y, Batch(*case.data))
    assert result.certificate is not None
    np.testing.assert_allclose(result.certificate.stationarity, expected.stationarity)


# --- oracles --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Trees:
    """Blocks that are trees, with a Hessian that varies."""

    m: int

    def lower(self, x, y, batch):
        rows = jax.vmap(
            lambda a, b: jnp.sum(jnp.cosh(a)) + (b @ a) * x["s"] + jnp.sum(b**2) + a @ x["t"] * b[0]
        )
        return rows(y["a"], y["b"]).sum()

    def point(self):
        keys = jax.random.split(KEY, 4)
        y = {"a": jax.random.normal(keys[0], (self.m, 2)), "b": jnp.ones((self.m, 2))}
        return {"s": jnp.array(0.7), "t": jax.random.normal(keys[1], (2,))}, y


@pytest.mark.slow(unless=lambda m: m == 3)
@pytest.mark.parametrize("m", [1, 3])
def test_dense_derivatives_of_blocks_are_those_of_the_whole(m):
    """m = 1 has fewer unknowns below than above or as many, m = 3 more: both ways of the cross."""
    given = Trees(m)
    problem, (x, y) = bl.Problem(given.lower, given.lower, blocks=m), given.point()
    hessians = oracles.block_hessians(problem, x, y, None)
    crosses = oracles.block_crosses(problem, x, y, None)
    assert hessians.shape == (m, 4, 4)
    assert crosses.shape == (m, 3, 4)
    for b in range(m):
        alone = jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], y)
        np.testing.assert_allclose(
            hessians[b], oracles.dense_hessian(problem, x, alone, None), atol=1e-13
        )
        np.testing.assert_allclose(
            crosses[b], oracles.dense_cross(problem, x, alone, None), atol=1e-13
        )


@pytest.mark.parametrize("given", [2, 4])
def test_upper_gradients_block_by_block(given):
    """Of some blocks, each one's own; of all, rows with the right mean."""
    case = problems.blocks_noise()
    rows = jax.tree.map(lambda leaf: leaf[:given], case.data[0])
    x, y = case.x0, jnp.arange(3.0 * given).reshape(given, 3)
    value, f_x, f_y = blocks.upper_grads(case.problem, x, y, rows, M)
    for b in range(given):
        one = jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], rows)
        _, g_x, g_y = oracles.upper_grads(case.problem, x, y[b : b + 1], one)
        np.testing.assert_allclose(f_y[b], g_y[0], rtol=1e-12)
        if given < M:
            np.testing.assert_allclose(f_x[b], g_x, rtol=1e-12)
    whole, g_x, _ = oracles.upper_grads(case.problem, x, y, rows)
    np.testing.assert_allclose((value, *f_x.mean(0)), (whole, *g_x), rtol=1e-12)
