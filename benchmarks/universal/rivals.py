"""What a person would use instead: SLSQP on the relaxed KKT system, and a genetic algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import differential_evolution, minimize

import bilevel as bl
from benchmarks.universal.case import Case
from bilevel.lower.barrier import finite

RELAXED = 1e-6  # the largest product of a multiplier and its slack
STEPS = 200  # of SLSQP
EVALUATIONS = 3000  # of the genetic algorithm, each with the follower's exact answer, for free
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
    found = minimize(
        jax.jit(jax.value_and_grad(loss)),
        np.concatenate([flat, np.zeros(h + e)]),
        jac=True,
        method="SLSQP",
        constraints=[
            {"type": "eq", "fun": equations, "jac": jax.jit(jax.jacrev(equations))},
            {"type": "ineq", "fun": rest, "jac": jax.jit(jax.jacrev(rest))},
        ],
        options={"maxiter": STEPS},
    )
    return *unravel(jnp.asarray(found.x[:n])), bool(found.success)


def genetic(case: Case):
    """Differential evolution on x; a violated constraint of the leader costs 1000 times itself."""
    above = case.problem.upper_set
    x0 = np.asarray(case.x0)
    low, high = x0 - REACH, x0 + REACH
    if isinstance(above, bl.sets.Box):
        low, high = (np.broadcast_to(side, x0.shape) for side in (above.lo, above.hi))

    def loss(x):
        if isinstance(above, bl.sets.Simplex):
            x = np.asarray(above.project(jnp.asarray(x)))
        outside = above.violation(jnp.asarray(case.answer(x)), x) if above.moves else 0.0
        return case.value(x) + 1000 * float(outside)

    size = max(1, min(15, EVALUATIONS // (10 * x0.size)))
    rounds = max(1, EVALUATIONS // (size * x0.size) - 1)
    found = differential_evolution(
        loss, list(zip(low, high, strict=True)), popsize=size, maxiter=rounds, rng=0, polish=False
    )
    x = found.x
    if isinstance(above, bl.sets.Simplex):
        x = np.asarray(above.project(jnp.asarray(x)))
    return jnp.asarray(x), jnp.asarray(case.answer(x)), bool(found.success)


def _stacked(tree):
    return jnp.concatenate([jnp.zeros(0), *(jnp.ravel(leaf) for leaf in jax.tree.leaves(tree))])
