"""Two coupled equations, solved by stochastic approximation on two timescales."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from bilevel import trees
from bilevel.sets import AbstractSet, Free
from bilevel.typing import Lower, Scalar, Upper
from bilevel.updates import AbstractUpdate, as_update


def couple(fast: Callable, slow: Callable, x: Upper, y: Lower, *, alternating: bool):
    """One step of both: `fast(x, y)` moves y, `slow(x, y)` moves x.

    If `alternating`, the slow move uses the new y; otherwise both use the old one. Each returns a
    NamedTuple; that of `fast` has the new y as `.y`.
    """
    moved = fast(x, y)
    return slow(x, moved.y if alternating else y), moved


class TwoTimescaleState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower
    updates: tuple[Any, Any]  # memories of the x and y updates


class _Moved(NamedTuple):
    y: Any
    memory: Any


class TwoTimescale(eqx.Module):
    """Solves `F(x, y) = 0, G(x, y) = 0` from noisy evaluations: x slow, y fast.

    `y ← y − b_k G(x, y; s)`, `x ← P_X(x − a_k F(x, y; s))` with `a_k/b_k` small or falling to zero.
    With F the hypergradient and G the lower gradient this is TTSA. With an actor and a critic it is
    two-timescale policy optimisation. Two timescales are needed: with a single one, a system may
    diverge even if its reduced equation `F(x, y*(x)) = 0` is stable.

    Args:
        slow, fast: F and G, `fn(x, y, sample) -> direction` shaped like x and like y.
        x_update, y_update: step sizes, schedules or updates.
        x_set: set of `bilevel.sets` that x is projected on.
        alternating: evaluate F at the new y; otherwise at the old one.

    Example:
        ```python
        loop = TwoTimescale(F, G, Polynomial(0.5, 0.9), Polynomial(0.5, 0.6))
        state = loop.init(x0, y0)
        state = jax.lax.scan(lambda s, sample: (loop.step(s, sample), None), state, samples)[0]
        ```

    Reference: Hong, Wai, Wang, Yang. SIAM J. Optim. 33(1), 2023, arXiv:2007.05170; Borkar.
    "Stochastic approximation with two time scales". Systems & Control Letters, 1997.
    """

    slow: Callable = eqx.field(static=True)
    fast: Callable = eqx.field(static=True)
    x_update: AbstractUpdate = eqx.field(converter=as_update)
    y_update: AbstractUpdate = eqx.field(converter=as_update)
    x_set: AbstractSet = eqx.field(default_factory=Free)
    alternating: bool = eqx.field(static=True, default=True)

    def init(self, x0: Upper, y0: Lower) -> TwoTimescaleState:
        """The state before the first step."""
        x, y = trees.copy(x0), trees.copy(y0)
        updates = self.x_update.init(x), self.y_update.init(y)
        return TwoTimescaleState(jnp.zeros((), jnp.int32), x, y, updates)

    def step(self, state: TwoTimescaleState, sample: Any = None) -> TwoTimescaleState:
        """One step of x and y; `sample` is passed to both functions unchanged."""
        k, x, y, (sx, sy) = state

        def fast(x, y):
            return _Moved(*self.y_update.step(self.fast(x, y, sample), sy, y, k))

        def slow(x, y):
            moved, memory = self.x_update.step(self.slow(x, y, sample), sx, x, k)
            return _Moved(self.x_set.project(moved), memory)

        (x, sx), (y, sy) = couple(fast, slow, x, y, alternating=self.alternating)
        return TwoTimescaleState(k + 1, x, y, (sx, sy))
