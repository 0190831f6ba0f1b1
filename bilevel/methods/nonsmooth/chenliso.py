"""The zeroth-order method of Chen, Li and So, for lower losses with the PL property.

Chen, Li, So. "Set smoothness unlocks Clarke hyper-stationarity in bilevel optimization". 2025,
arXiv:2506.04587.
Differs from the paper: x is projected on `upper_set`, values come from a penalty, and the result is
the last x, not a random iterate.
"""

from typing import ClassVar

import equinox as eqx
from jaxtyping import ScalarLike

from bilevel.fields import positive
from bilevel.hypergrad import AbstractSelection, PenalisedSelection
from bilevel.methods.base import LoopMethod, LowerAssumption
from bilevel.methods.nonsmooth.zeroth import Zeroth
from bilevel.problem import Structure
from bilevel.updates import AbstractUpdate, as_update


class ChenLiSo(LoopMethod):
    """Zeroth order in x, with values from a penalty: optimistic or pessimistic.

    x moves along `n/(2r) (l(x + r u) − l(x − r u)) u`, u uniform on the unit sphere, where
    `l(x) ≈ min over y of f + λ (g − min g)`, or the pessimistic `max f − λ (g − min g)`. A step
    takes two values of l, each by two lower solves. Assumes closed and convex sets of lower
    minimisers, a uniform error bound (as under the Polyak-Łojasiewicz inequality) and Lipschitz
    second derivatives of g. Then the set moves smoothly, the pessimistic l is weakly convex and the
    optimistic l weakly concave. With K steps of size `n^(−1/2) K^(−1/2)`, a radius of `K^(−1/2)`
    and values exact to `n^(−3/4) K^(−3/4)`, a random iterate is nearly stationary after `Õ(ε⁻⁴)`
    steps. Stationarity is measured by the Moreau envelope for the pessimistic l. For the optimistic
    l it is the distance of 0 from the Clarke subdifferentials in a ball of radius `K^(−1/4)`. For a
    finite λ the result is that of the penalised problem, with an error of O(1/λ).

    The paper does not cover a `lower_set`: a box can destroy the weak convexity.

    Attributes:
        selection: the value oracle, `PenalisedSelection(penalty, pessimistic)`.
        radius: r, in theory of order ε². An error a of the values gives an error of `a n / r` in
            the direction.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    selection: AbstractSelection = eqx.field(default_factory=PenalisedSelection)
    radius: ScalarLike = positive(0.1)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    below: ClassVar[LowerAssumption] = LowerAssumption.DOMINATED
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y"
    rate: ClassVar[str] = "ε⁻², Moreau or Clarke"
    paper: ClassVar[str] = "chen2025set"

    @property
    def loop(self) -> Zeroth:
        return Zeroth(self.x_update, self.selection, self.radius)
