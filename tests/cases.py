"""The tables of the contract: every method, with steps scaled to a problem; every problem.

A new method joins with one row in METHODS.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel import linear, lower, methods, problems, schedules, trees
from bilevel.problems import Case

PROBLEMS = {
    name: problems.ALL[name]
    for name in (
        "quad",
        "boxed",
        "nested",
        "blocks",
        "curv",
        "scalar",
        "shifted",
        "minmax",
        "ridge",
    )
}


class Scales(NamedTuple):
    """Step sizes that suit a problem: fractions of one over its smoothness."""

    upper: float  # 1 / L of the hyper-objective at x0
    lower: float  # 1 / L of the lower loss, where that is largest on the way
    first: float  # 1 / L of the lower loss at x0
    mu: float  # of the lower loss, where that is least on the way

    def terms(self, step: float) -> int:
        """Terms of a series, or lower steps of this size, that leave an error of 1e-7."""
        return int(np.ceil(np.log(1e-7) / np.log(1 - step * self.mu)))


@functools.cache
def scales(problem: str) -> Scales:
    case = PROBLEMS[problem]()
    flat, unravel = ravel_pytree(case.x0)
    gradient = jax.jit(lambda x: ravel_pytree(case.gradient(unravel(x)))[0])
    columns = [gradient(flat + e) - gradient(flat - e) for e in 1e-4 * np.eye(flat.size)]
    upper = 1 / max(np.linalg.norm(np.stack(columns), 2) / 2e-4, 0.1)
    mu, L = spread_on_the_way(case, upper) if problem == "ridge" else (case.lower_mu, case.lower_L)
    return Scales(upper, 0.9 / L, 0.9 / case.lower_L, mu)


def spread_on_the_way(case: Case, step: float) -> tuple[float, float]:
    """Least and largest curvature of the lower loss at x0 and where 1000 gradient steps lead.

    On ridge the penalty of a feature that does not help grows without bound, and the curvature
    with it: 30 in place of 2.
    """
    move = lambda _, x: trees.axpy(-step, case.gradient(x), x)  # noqa: E731
    end = jax.jit(lambda x: jax.lax.fori_loop(0, 1000, move, x))(case.x0)
    hessian = jax.jit(jax.hessian(case.problem.lower, 1))
    eigenvalues = [np.linalg.eigvalsh(hessian(x, case.y_star(x), None)) for x in (case.x0, end)]
    return np.min(eigenvalues), np.max(eigenvalues)


class Row(NamedTuple):
    """A method of the contract.

    build: settings for a problem, with the x step multiplied by `speed`.
    bias: how far its direction is from the hypergradient when y is at its target, relatively.
    target: the map of x whose zero it finds, where by design that is not the hypergradient.
    left: at most this part of the gradient is left where a run ends on a hard problem.
    joint: x and y move as one, so that its direction says nothing while x is held; rounding grows
        across the kink of its multiplier.
    line_search: it has no x step to set, finds its own in loops of unknown length, so that it can
        neither diverge nor be differentiated in reverse mode, and its price is a mean.
    heavy: compiling it takes long.
    normalised: its x steps have a length of their own, whatever the direction's.
    """

    build: Callable[[Scales, float], methods.AbstractMethod]
    bias: float = 1e-5
    target: Callable[[Case, Scales], Callable] | None = None
    left: float = 0.02
    joint: bool = False
    line_search: bool = False
    normalised: bool = False
    heavy: bool = False


def one_term(case: Case, s: Scales) -> Callable:
    """`∇_x f − a (∂²g/∂x∂y) ∇_y f` at y*(x): the inverse Hessian taken for `a I`, a the y step."""

    def direction(x):
        y = case.y_star(x)
        f_x, f_y = jax.grad(case.problem.upper, argnums=(0, 1))(x, y, None)
        pull = lambda x: trees.dot(jax.grad(case.problem.lower, 1)(x, y, None), f_y)  # noqa: E731
        return trees.axpy(-s.lower, jax.grad(pull)(x), f_x)

    return direction


def together(scale: float) -> schedules.AbstractSchedule:
    """Steps that stay near `scale` and then fall fast: for a method whose error is its step."""
    return schedules.Polynomial(500.0**3 * scale, 3.0, 500.0)


METHODS: dict[str, Row] = {
    "SOBA": Row(lambda s, speed: methods.SOBA(0.1 * speed * s.upper, s.lower, s.lower)),
    "SABA": Row(lambda s, speed: methods.SABA(0.1 * speed * s.upper, s.lower, s.lower)),
    "SRBA": Row(
        lambda s, speed: methods.SRBA(0.1 * speed * s.upper, s.lower, s.lower, 4, restart=1)
    ),
    "FSLA": Row(lambda s, speed: methods.FSLA(0.05 * speed * s.upper, s.lower, s.lower, 0.3)),
    "MASOBA": Row(lambda s, speed: methods.MASOBA(0.05 * speed * s.upper, s.lower, s.lower, 0.5)),
    "BOREP": Row(
        lambda s, speed: methods.BOREP(
            schedules.Polynomial(speed, 1.0, 4.0),
            s.lower,
            s.lower,
            0.5,
            lower.BallSGD(5),
            first=lower.BallSGD(5),
            period=2,
        ),
        normalised=True,
    ),
    "TTSA": Row(
        lambda s, speed: methods.TTSA(
            0.2 * speed * s.upper, s.lower, linear.Neumann(s.terms(s.lower), s.lower)
        )
    ),
    "StocBiO": Row(
        lambda s, speed: methods.StocBiO(
            0.5 * speed * s.upper,
            s.lower,
            linear.Neumann(s.terms(s.lower), s.lower),
            lower_steps=10,
        )
    ),
    "BA": Row(
        lambda s, speed: methods.BA(
            0.5 * speed * s.upper,
            s.lower,
            linear.Neumann(s.terms(s.lower), s.lower),
            lower_steps=10,
        )
    ),
    "BSA": Row(
        lambda s, speed: methods.BSA(
            0.5 * speed * s.upper,
            s.lower,
            linear.Neumann(s.terms(s.lower), s.lower),
            lower_steps=10,
        )
    ),
    "ALSET": Row(
        lambda s, speed: methods.ALSET(
            0.2 * speed * s.upper, s.lower, linear.Neumann(s.terms(s.lower), s.lower), lower_steps=2
        )
    ),
    "AmIGO": Row(
        lambda s, speed: methods.AmIGO(
            0.2 * speed * s.upper, s.lower, linear.FixedPoint(5, s.lower), lower_steps=5
        )
    ),
    "BiOAID": Row(
        lambda s, speed: methods.BiOAID(
            0.2 * speed * s.upper, s.lower, linear.FixedPoint(5, s.lower), lower_steps=5
        )
    ),
    "BiOITD": Row(
        lambda s, speed: methods.BiOITD(
            0.5 * speed * s.upper, 0.6 * s.lower, lower_steps=s.terms(0.6 * s.lower)
        )
    ),
    "STN": Row(  # a small σ: where the lower loss is not quadratic the bias is of order σ²
        lambda s, speed: methods.STN(
            0.2 * speed * s.upper, 0.25 * s.lower, sigma0=1e-3, tune_sigma=False, warm_up=0
        )
    ),
    "RSVRB": Row(lambda s, speed: methods.RSVRB(0.1 * speed * s.upper, s.lower)),
    "BSVRBv1": Row(lambda s, speed: methods.BSVRBv1(0.1 * speed * s.upper, s.lower)),
    "BSVRBv2": Row(lambda s, speed: methods.BSVRBv2(0.1 * speed * s.upper, s.lower, s.lower)),
    "DARTS": Row(
        lambda s, speed: methods.DARTS(0.5 * speed * s.upper, s.lower), target=one_term, left=0.05
    ),
    "BOME": Row(  # x moves by the y step and stays near x0
        lambda s, speed: methods.BOME(
            together(speed * min(s.upper, 3 * s.first)),
            together(speed * min(s.upper, 3 * s.first)),
            min(speed, 1.0) * s.first,  # on few rows the lower steps, all on the same, need care
            lower_steps=max(s.terms(s.first), 2),
        ),
        joint=True,
    ),
    "F2BA": Row(
        lambda s, speed: methods.F2BA(
            0.5 * speed * s.upper, s.lower, penalty=300.0, lower_steps=10, order=2
        ),
        bias=5e-4,
    ),
    "F3SA": Row(
        lambda s, speed: methods.F3SA(
            0.05 * speed * s.upper, s.lower, s.lower, penalty=1000.0, weight=0.3
        ),
        bias=5e-3,
    ),
    "F2SA": Row(
        lambda s, speed: methods.F2SA(
            0.5 * speed * s.upper, s.lower, s.lower, penalty=3000.0, lower_steps=10
        ),
        bias=5e-3,
    ),
    "SUSTAIN": Row(
        lambda s, speed: methods.SUSTAIN(
            0.2 * speed * s.upper, s.lower, linear.Neumann(s.terms(s.lower), s.lower), 0.3, 0.5
        )
    ),
    "MRBO": Row(
        lambda s, speed: methods.MRBO(
            0.2 * speed * s.upper, s.lower, linear.Neumann(s.terms(s.lower), s.lower), 0.3, 0.5
        )
    ),
    "VRBO": Row(  # differences of single batches need steps that suit each of them
        lambda s, speed: methods.VRBO(
            0.05 * speed * s.upper,
            0.25 * s.lower,
            linear.Neumann(s.terms(0.5 * s.lower), 0.5 * s.lower),
            lower_steps=2,
            period=2,
            restart=1,
        ),
        heavy=True,
    ),
    "STABLE": Row(lambda s, speed: methods.STABLE(0.05 * speed * s.upper, s.lower, 0.3)),
    "SVRB": Row(lambda s, speed: methods.SVRB(0.05 * speed * s.upper, s.lower, 0.3)),
    "MAID": Row(
        lambda s, speed: methods.MAID(step_size=0.1 * speed * s.upper), line_search=True, heavy=True
    ),
}


FEW = {"SOBA", "TTSA", "SABA", "F3SA", "SVRB"}  # one of each family


def made(name: str, case: Case, speed: float = 1.0) -> methods.AbstractMethod:
    """A method of the table with steps that suit the problem."""
    return METHODS[name].build(scales_of(case), speed)


def scales_of(case: Case) -> Scales:
    alike = {"quad_noise": "quad", "ridge_rows": "ridge"}.get(case.name, case.name)
    return scales(alike)


def aim(name: str, case: Case) -> Callable:
    """The map of x whose zero a method finds: the hypergradient, or its target."""
    target = METHODS[name].target
    return case.gradient if target is None else target(case, scales_of(case))


def limit(name: str, case: Case):
    """Where a method ends: the solution, or the zero of its target by projected steps along it."""
    if METHODS[name].target is None:
        return case.x_star
    direction, step = aim(name, case), 0.5 * scales_of(case).upper

    def body(_, x):
        return case.problem.upper_set.project(trees.axpy(-step, direction(x), x))

    return jax.jit(lambda x: jax.lax.fori_loop(0, 4000, body, x))(case.x0)


def sampled(name: str, case: Case, batch_size: int, order: str = "epochs"):
    """A method of the table with small steps, as single rows need, and data in batches.

    A method with tables gets single rows, and a slot for each.
    """
    steps = scales_of(case)
    method = METHODS[name].build(steps._replace(lower=0.1 * steps.lower), 0.1)
    if not hasattr(method, "lower_slots"):
        return method, bl.Data(*case.data, batch_size=batch_size, order=order)
    data = bl.Data(*case.data, batch_size=1, order=order)
    return method.for_data(data.batches), data


def start(method, case: Case):
    return method.init(case.problem, case.x0, case.y0, key=jax.random.key(7))


def run(method, case: Case, steps: int, *, state=None, data=None, key=None):
    """The last state of `bl.run` from x0 and y0, or from a state.

    One compilation serves every number of steps and all settings of a method on a problem.
    """
    state = start(method, case) if state is None else state
    key = jax.random.key(0) if key is None else key
    feed = (data or bl.Data()).feed(key, method.draws(case.problem))
    return _run(case.problem, method, feed, state, steps)


@jax.jit
def _run(problem, method, feed, state, steps):
    one = lambda _, s: bl.run(problem, method, s, data=feed, steps=1)[0]  # noqa: E731
    return jax.lax.fori_loop(0, steps, one, state)


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def distance(a, b) -> float:
    return float(np.linalg.norm(flat(a).astype(float) - flat(b).astype(float)))


def same_bits(a, b) -> bool:
    """Equal leaf by leaf, bit for bit; random keys by the integers behind them."""

    def plain(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(plain(p), plain(q)) for p, q in pairs)
