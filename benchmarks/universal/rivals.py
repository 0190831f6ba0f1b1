"""What a person would use instead: SLSQP on the relaxed KKT system, or a search over x.

All end after `CAP` seconds of the processor with the best point so far. The searches over x, by a
genetic algorithm and by Optuna, get the follower's exact answer.
"""

import contextlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import differential_evolution, minimize

import bilevel as bl
from benchmarks.universal.case import Case
from bilevel.lower.barrier import finite

CAP = 60.0  # seconds of the processor
RELAXED = 1e-6  # the largest product of a multiplier and its slack
STEPS = 200  # of SLSQP
EVALUATIONS = 3000  # of the searches over x
REACH = 5.0  # it looks in x0 ± this where x has no bounds of its own


def slsqp(case: Case):
    """The leader's loss over (x, y, multipliers), under the follower's conditions.

    Data are taken whole. The start is the case's, with multipliers of zero.
    """
    p, batch = case.problem, case.whole
    flat, unravel = ravel_pytree((case.x0, case.y0))

    def sides(z, a_set, of_y: bool):
        x, y = unravel(z)
        found = a_set.constraints(y, x) if of_y or a_set.moves else a_set.constraints(x)
        return _stacked(finite(found.inequalities)), _stacked(found.equalities)

    h, e = (len(part) for part in sides(flat, p.lower_set, True))
    n, m = len(flat), case.y0.size

    def conditions(w):
        z, up, across = w[:n], w[n : n + h], w[n + h :]

        def lagrangian(z):
            low, equal = sides(z, p.lower_set, True)
            return p.lower(*unravel(z), batch.lower) + up @ low + across @ equal

        low, equal = sides(z, p.lower_set, True)
        upper, upper_equal = sides(z, p.upper_set, False)
        equations = jnp.concatenate([jax.grad(lagrangian)(z)[n - m :], equal, upper_equal])
        return equations, jnp.concatenate([-low, -upper, up, RELAXED + up * low])

    def loss(w):
        return p.upper(*unravel(w[:n]), batch.upper)

    equations, rest = (jax.jit(lambda w, i=i: conditions(w)[i]) for i in (0, 1))
    slope, clock, last = jax.jit(jax.value_and_grad(loss)), Clock(), [np.zeros(0)]

    def timed(w):
        last[0] = w.copy()
        clock.check()
        return slope(w)

    start = np.concatenate([flat, np.zeros(h + e)])
    try:
        found, claimed = _minimized(timed, start, equations, rest)
    except TimeIsUp:
        found, claimed = last[0], False
    return *unravel(jnp.asarray(found[:n])), claimed


def _minimized(slope, start, equations, rest) -> tuple[np.ndarray, bool]:
    found = minimize(
        slope,
        start,
        jac=True,
        method="SLSQP",
        constraints=[
            {"type": "eq", "fun": equations, "jac": jax.jit(jax.jacrev(equations))},
            {"type": "ineq", "fun": rest, "jac": jax.jit(jax.jacrev(rest))},
        ],
        options={"maxiter": STEPS},
    )
    return found.x, bool(found.success)


def genetic(case: Case):
    """Differential evolution on x."""
    search = Search(case)
    x0, (low, high) = search.x0, search.bounds
    size = max(1, min(15, EVALUATIONS // (10 * x0.size)))
    rounds = max(1, EVALUATIONS // (size * x0.size) - 1)
    try:
        found = differential_evolution(
            search,
            list(zip(low, high, strict=True)),
            popsize=size,
            maxiter=rounds,
            rng=0,
            polish=False,
        )
        claimed = bool(found.success)
    except TimeIsUp:
        claimed = False
    return *search.end(), claimed


def optuna(case: Case):
    """Optuna's default sampler, TPE, on x. It claims nothing."""
    import optuna  # pyright: ignore[reportMissingImports]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = Search(case)
    sides = list(zip(*search.bounds, strict=True))

    def objective(trial):
        return search(
            np.array([trial.suggest_float(f"x{i}", *side) for i, side in enumerate(sides)])
        )

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial({f"x{i}": value for i, value in enumerate(search.x0)})
    with contextlib.suppress(TimeIsUp):
        study.optimize(objective, EVALUATIONS)
    return *search.end(), False


class TimeIsUp(Exception):
    """The cap is reached."""


class Clock:
    """Seconds of the processor since it was made."""

    def __init__(self):
        self.begin = time.process_time()

    def check(self) -> None:
        if time.process_time() - self.begin > CAP:
            raise TimeIsUp


class Search:
    """The leader's loss at x with the follower's exact answer, and the best x so far.

    A violated constraint of the leader costs 1000 times itself.
    """

    def __init__(self, case: Case):
        self.case, self.clock, self.x0 = case, Clock(), np.asarray(case.x0)
        self.best, self.least = self.x0, np.inf

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        above = self.case.problem.upper_set
        if isinstance(above, bl.sets.Box):
            low, high = (np.broadcast_to(side, self.x0.shape) for side in (above.lo, above.hi))
            return low, high
        return self.x0 - REACH, self.x0 + REACH

    def __call__(self, x: np.ndarray) -> float:
        self.clock.check()
        above = self.case.problem.upper_set
        if isinstance(above, bl.sets.Simplex):
            x = np.asarray(above.project(jnp.asarray(x)))
        outside = above.violation(jnp.asarray(self.case.answer(x)), x) if above.moves else 0.0
        loss = self.case.value(x) + 1000 * float(outside)
        if loss < self.least:
            self.best, self.least = x, loss
        return loss

    def end(self):
        return jnp.asarray(self.best), jnp.asarray(self.case.answer(self.best))


def _stacked(tree):
    return jnp.concatenate([jnp.zeros(0), *(jnp.ravel(leaf) for leaf in jax.tree.leaves(tree))])
