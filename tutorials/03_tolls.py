"""
A toll, and a driver who has a choice
=====================================

A leader sets a toll on a road; a follower takes the road or a detour, whichever is cheaper. The
follower's answer jumps, so no gradient says where to stop: ``solve`` without a method searches
small problems globally, and its certificate says what is known of both levels.
"""

# %%
# ``y`` is the share of traffic on the toll road, which takes 1 hour; the detour takes 3. The toll
# ``x`` counts as hours. The leader earns ``x y``.

import jax
import jax.numpy as jnp

import bilevel as bl

jax.config.update("jax_enable_x64", True)


def earned(x, y, batch):
    return -jnp.sum(x * y)  # losses are minimised


def hours(x, y, batch):
    return jnp.sum((1.0 + x) * y + 3.0 * (1.0 - y))


problem = bl.Problem(
    earned, hours, upper_set=bl.sets.Box(0.0, 5.0), lower_set=bl.sets.Box(0.0, 1.0)
)
result = bl.solve(problem, x0=jnp.ones(1), y0=jnp.ones(1), progress=False)
print("toll", result.x, "share on the road", result.y)

# %%
# At a toll of exactly 2 both ways cost the same. The answer above is the optimistic one: among
# equals, the follower does what the leader likes. The pessimistic upper loss is what the leader
# gets if the follower decides otherwise: nothing, here. A pessimist asks for a little less.

print(result.status)
careful = bl.solve(problem, x0=jnp.ones(1), y0=jnp.ones(1), follower="pessimistic", progress=False)
print("toll of a pessimist", careful.x, "share on the road", careful.y)
for toll in (1.99, 2.01):
    share = 1.0 if 1 + toll < 3 else 0.0
    print(f"toll {toll}: the driver's share on the road is {share:.0f}, earned {toll * share:.2f}")

# %%
# With some thousands of different drivers the answer is smooth, and gradient methods are at home:
# here a share that falls gradually, by an entropy term below.


def smooth_hours(x, y, batch):
    entropy = jnp.sum(y * jnp.log(y) + (1 - y) * jnp.log(1 - y))
    return hours(x, y, batch) + 0.1 * entropy


smooth = bl.Problem(
    earned, smooth_hours, upper_set=bl.sets.Box(0.0, 5.0), lower_set=bl.sets.Box(1e-6, 1 - 1e-6)
)
smoothed = bl.solve(smooth, x0=jnp.ones(1), y0=jnp.full(1, 0.5), progress=False)
print("toll", smoothed.x, "share on the road", smoothed.y)
print(smoothed.certificate)
