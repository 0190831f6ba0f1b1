"""Steps with convolutions, on a CPU: no loop of XLA around them.

Inside `scan`, `fori_loop`, `while_loop` and `cond`, XLA runs a convolution 13 to 29 times slower
on a CPU than outside. So the steps of a run are dispatched one by one there, and the loops within a
step, such as a few lower steps, are unrolled whole.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import PyTree

from bilevel.jaxprs import inner

MOST_UNROLLED = 64  # copies of a loop's body in a step; a longer one compiles for too long


def avoid_loops(jaxpr: ClosedJaxpr, state: PyTree) -> bool:
    """Whether a step has a convolution and runs on a CPU."""
    arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    on_cpu = all(device.platform == "cpu" for leaf in arrays for device in leaf.devices())
    return on_cpu and has_convolution(jaxpr.jaxpr)


def has_convolution(jaxpr: Jaxpr) -> bool:
    """Whether there is one, inside nested functions too."""
    return any(
        eqn.primitive.name == "conv_general_dilated"
        or any(has_convolution(one) for one in inner(eqn.params))
        for eqn in jaxpr.eqns
    )


def unrolled(fn: Callable, most: int = MOST_UNROLLED) -> Callable:
    """The same function, with every `scan` around a convolution unrolled whole.

    A `fori_loop` with fixed bounds is a scan. One of more than `most` steps in all stays a loop,
    as does a `while_loop`, whose length is not known.
    """

    def with_unrolled(*args: Any) -> Any:
        jaxpr, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        flat = jaxpr_as_fun(_rewrite(jaxpr, most))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), flat)

    return with_unrolled


def _rewrite(jaxpr: Any, most: int) -> Any:
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr.replace(jaxpr=_rewrite(jaxpr.jaxpr, most))
    if not has_convolution(jaxpr):
        return jaxpr
    return jaxpr.replace(eqns=[eqn.replace(params=_params(eqn, most)) for eqn in jaxpr.eqns])


def _params(eqn: Any, most: int) -> dict[str, Any]:
    if not any(has_convolution(one) for one in inner(eqn.params)):
        return eqn.params
    own, left = {}, most
    if eqn.primitive.name == "scan" and eqn.params["length"] <= most:
        own, left = {"unroll": eqn.params["length"]}, most // max(eqn.params["length"], 1)
    return {name: _rewritten(value, left) for name, value in eqn.params.items()} | own


def _rewritten(value: Any, most: int) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_rewritten(one, most) for one in value)
    return _rewrite(value, most) if isinstance(value, Jaxpr | ClosedJaxpr) else value
