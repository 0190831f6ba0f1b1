"""Families of problems of any size whose best value is known.

Most are planted: a best x is drawn, the follower's answer to it computed in NumPy, and the upper
loss is the squared distance to both, so its least value is 0 and everyone can check it. Where the
leader and the follower disagree (tolls, linear followers, kinks, weights of a penalty) the best
value comes from a bound that is attained, from an enumeration, or from SciPy on the closed form.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

import bilevel as bl
from benchmarks.universal.case import Case


def turn(v, x):
    """An orthogonal matrix times x: `(I − 2 v vᵀ/‖v‖²) x`, so that no entry of y sees one of x."""
    return x - 2 * v * (v @ x) / (v @ v)


def distance(best_x, best_y):
    """The upper loss of a planted problem: mean squared distances."""
    return lambda x, y, batch: jnp.mean((x - best_x) ** 2) + jnp.mean((y - best_y) ** 2)


def planted(family: str, n: int, best_x, answer: Callable, lower, *, x0, y0, **given) -> Case:
    """The upper loss is the distance to a best x and to the follower's answer to it."""
    problem = bl.Problem(distance(best_x, answer(best_x)), lower, **given)
    return Case(family, n, problem, jnp.asarray(x0), jnp.asarray(y0), 0.0, answer)


def free(n: int, rng, family="free, strongly convex", hypergradient=None, lower_step=None) -> Case:
    """A free quadratic follower, of condition 30."""
    v, curvature, best = rng.normal(size=n), np.geomspace(1, 30, n), rng.normal(size=n)

    def answer(x):
        return turn(v, x) / curvature

    upper = distance(best, answer(best))

    def closed_form(x, y, batch):
        f_x, f_y = jax.grad(upper, (0, 1))(x, y, None)
        return f_x + turn(v, f_y / curvature)

    return planted(
        family, n, best, answer,
        lambda x, y, b: jnp.sum(curvature * y**2) / 2 - y @ turn(v, x),
        x0=np.zeros(n), y0=np.zeros(n),
        hypergradient=closed_form if hypergradient else None,
        lower_step=(lambda x, y, b: (y + answer(x)) / 2) if lower_step else None,
    )  # fmt: skip


def own_hypergradient(n: int, rng) -> Case:
    """As `free`, with the hypergradient declared in closed form."""
    return free(n, rng, "declared hypergradient", hypergradient=True)


def own_step(n: int, rng) -> Case:
    """As `free`, with a lower step of one's own: half of the way to the answer."""
    return free(n, rng, "declared lower step", lower_step=True)


def on_simplex(n: int, rng) -> Case:
    """A free quadratic follower, and x on the simplex."""
    v, best = rng.normal(size=n), rng.dirichlet(np.ones(n))
    return planted(
        "x on a simplex", n, best, lambda x: turn(v, x),
        lambda x, y, b: jnp.sum((y - turn(v, x)) ** 2) / 2,
        x0=np.full(n, 1 / n), y0=np.zeros(n), upper_set=bl.sets.Simplex(),
    )  # fmt: skip


def box(n: int, rng) -> Case:
    """A follower in a box: a third of its answer inside, a third at a bound, a third at a kink.

    In turned coordinates u the losses are separable: `(u − a)² + (y − b)²`, y = u in [0, 1]. Its
    minimum is at `(a + b)/2` inside, at a where y stays at a bound, and at 0 where b < −a < 0.
    """
    v, kind = rng.normal(size=n), np.arange(n) % 3
    a = np.choose(kind, [rng.uniform(0, 1, n), rng.uniform(-1, 0, n), rng.uniform(0, 1, n)])
    b = np.choose(kind, [rng.uniform(0, 1, n), rng.uniform(-1, 0, n), -a - rng.uniform(0, 1, n)])
    u = np.choose(kind, [(a + b) / 2, a, 0 * a])
    y = np.clip(u, 0, 1)
    problem = bl.Problem(
        lambda x, y, _: jnp.mean((turn(v, x) - a) ** 2 + (y - b) ** 2),
        lambda x, y, _: jnp.sum((y - turn(v, x)) ** 2),
        lower_set=bl.sets.Box(0.0, 1.0),
    )
    x0 = jnp.asarray(turn(v, np.full(n, 2.0)))
    best = float(np.mean((u - a) ** 2 + (y - b) ** 2))
    return Case(
        "quadratic, box", n, problem, x0, jnp.ones(n), best, lambda x: np.clip(turn(v, x), 0, 1)
    )


def polyhedron(n: int, rng) -> Case:
    """A follower that projects on n/2 half-spaces, half of them active at the best x."""
    v, best = rng.normal(size=n), rng.normal(size=n)
    A = rng.normal(size=(n // 2, n)) / np.sqrt(n)
    side = A @ turn(v, best) + np.where(np.arange(n // 2) % 2, -1, 1) * rng.uniform(
        0.1, 0.5, n // 2
    )
    L = np.linalg.cholesky(A @ A.T)

    def answer(x):
        z = turn(v, x)
        return z - A.T @ nnls(L.T, np.linalg.solve(L, A @ z - side))[0]

    return planted(
        "quadratic, polyhedron", n, best, answer,
        lambda x, y, b: jnp.sum((y - turn(v, x)) ** 2) / 2,
        x0=np.zeros(n), y0=np.zeros(n), lower_set=bl.sets.Polyhedron(A, side),
    )  # fmt: skip


def linear(n: int, rng) -> Case:
    """Followers with linear losses: `y = max(a_1 x + b_1, a_2 x + b_2)`, each x in [0, 1].

    The leader pays `p x + q y`. Half of the q are negative: then l is concave, with a minimum at
    each end, so there are about 2^(n/2) local minima. The best is the sum of enumerations.
    """
    slope, at = rng.normal(size=(2, n)), rng.normal(size=(2, n)) / 2
    p, q = rng.normal(size=n), np.where(np.arange(n) % 2, -1.0, 1.0) * rng.uniform(0.5, 1.5, n)
    kink = np.clip((at[1] - at[0]) / np.where(slope[0] == slope[1], 1, slope[0] - slope[1]), 0, 1)

    def answer(x):
        return np.max(slope * x + at, axis=0)

    ends = np.stack([np.zeros(n), kink, np.ones(n)])
    best = sum(min(p[i] * x[i] + q[i] * answer(x)[i] for x in ends) for i in range(n))
    rows = -np.vstack([np.eye(n), np.eye(n)])
    problem = bl.Problem(
        lambda x, y, _: p @ x + q @ y,
        lambda x, y, _: jnp.sum(y),
        upper_set=bl.sets.Box(0.0, 1.0),
        lower_set=bl.sets.Polyhedron(rows, lambda x: -(slope * x[None] + at).ravel()),
    )
    x0 = np.full(n, 0.5)
    return Case("linear", n, problem, jnp.asarray(x0), jnp.asarray(answer(x0)), float(best), answer)


def entropic(n: int, rng) -> Case:
    """A follower with an entropy on the simplex: y is the softmax of x, turned."""
    v, best = rng.normal(size=n), rng.normal(size=n)

    def answer(x):
        weights = np.exp(turn(v, x) - turn(v, x).max())
        return weights / weights.sum()

    best_y = answer(best)

    def upper(x, y, batch):
        return jnp.mean((x - best) ** 2) + n * jnp.sum((y - best_y) ** 2)

    problem = bl.Problem(
        upper,
        lambda x, y, b: jnp.sum(jax.scipy.special.xlogy(y, y)) - y @ turn(v, x),
        lower_set=bl.sets.Simplex(),
    )
    start = jnp.full(n, 1 / n)
    return Case("entropic, simplex", n, problem, jnp.zeros(n), start, 0.0, answer)


def ball(n: int, rng) -> Case:
    """A follower in a ball whose radius the leader sets: `‖y‖² <= n (1 + x_0²)/4`."""
    v, best = rng.normal(size=n), rng.normal(size=n)

    def answer(x):
        z, radius = turn(v, x), np.sqrt(n * (1 + x[0] ** 2) / 4)
        return z * min(1.0, radius / np.linalg.norm(z))

    return planted(
        "coupled, nonlinear", n, best, answer,
        lambda x, y, b: jnp.sum((y - turn(v, x)) ** 2) / 2,
        x0=np.full(n, 0.1), y0=np.zeros(n),
        lower_set=bl.sets.Coupled(lambda x, y: jnp.mean(y**2) - (1 + x[0] ** 2) / 4),
    )  # fmt: skip


def upper_coupled(n: int, rng) -> Case:
    """A constraint on y*(x): `mean y >= 1`, which the nearest point to a does not satisfy."""
    v, a = rng.normal(size=n), rng.normal(size=n) / 2
    w = turn(v, np.ones(n))  # the sum of y*(x) = turn(v, x) is w·x
    x = a + w * max(0.0, n - w @ a) / (w @ w)
    problem = bl.Problem(
        lambda x, y, _: jnp.mean((x - a) ** 2),
        lambda x, y, _: jnp.sum((y - turn(v, x)) ** 2) / 2,
        upper_set=bl.sets.Coupled(lambda x, y: 1 - jnp.mean(y)),
    )
    best = float(np.mean((x - a) ** 2))
    start = jnp.asarray(turn(v, np.full(n, 3.0)))
    return Case(
        "constraint on y*(x)", n, problem, start, jnp.full(n, 3.0), best, lambda x: turn(v, x)
    )


def flat(n: int, rng) -> Case:
    """A follower with many answers: n/2 equations for n unknowns, in least squares."""
    v, A = rng.normal(size=n // 2), rng.normal(size=(n // 2, n)) / np.sqrt(n)
    best, best_y = rng.normal(size=n // 2), rng.normal(size=n)
    shift, inverse = A @ best_y - turn(v, best), np.linalg.pinv(A)

    def answer(x):  # the one that is nearest to the best
        return best_y + inverse @ (turn(v, x) + shift - A @ best_y)

    return planted(
        "flat", n, best, answer,
        lambda x, y, b: jnp.sum((A @ y - turn(v, x) - shift) ** 2) / 2,
        x0=np.zeros(n // 2), y0=np.zeros(n),
    )  # fmt: skip


def wells(n: int, rng) -> Case:
    """A nonconvex follower: each entry of y has two wells, and x says which one is deeper.

    The start has y in the wrong well, and x on the wrong side.
    """
    v, best = rng.normal(size=n), 0.5 + rng.uniform(size=n)
    best = turn(v, best * rng.choice([-1, 1], n))

    def answer(x):
        t = turn(v, x)
        y = np.where(t < 0, -1.0, 1.0) * (1 + np.abs(t))
        for _ in range(60):
            y = y - (y**3 - y - t) / (3 * y**2 - 1)
        return y

    return planted(
        "nonconvex, two wells", n, best, answer,
        lambda x, y, b: jnp.sum((y**2 - 1) ** 2) / 4 - y @ turn(v, x),
        x0=-best / 2, y0=-np.sign(turn(v, -best / 2)),
    )  # fmt: skip
