"""The zeroth-order method of Chen, Li and So, for lower losses with the PL property.

Chen, Li, So. "Set smoothness unlocks Clarke hyper-stationarity in bilevel optimization". 2025,
arXiv:2506.04587.
A reconstruction: problem class, measure and complexity are the paper's, the steps are the two-point
estimator and projected descent that go with them.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from bilevel.hypergrad import AbstractSelection, PenalisedSelection
from bilevel.methods.base import LoopMethod, LowerAssumption
from bilevel.methods.nonsmooth.zeroth import Zeroth
from bilevel.problem import Structure
from bilevel.updates import AbstractUpdate, as_update


class ChenLiSo(LoopMethod):
    """Zeroth order in x, with values from a penalty: optimistic or pessimistic.

    x moves along `n/(2r) (l(x + r u) − l(x − r u)) u`, u uniform on the unit sphere, where
    `l(x) ≈ min over y of f + λ (g − min g)`, or the pessimistic `max f − λ (g − min g)`. Two value
    oracles a step, of two lower solves each. Made for solution sets that move smoothly, as they do
    under the Polyak-Łojasiewicz inequality: then the pessimistic l is weakly convex, the optimistic
    one weakly concave. With steps of order `K^(−1/2)`, radius of order ε and λ of order `1/(r ε)`
    an approximately Clarke-stationary point (by the Moreau envelope, or the smoothed gradient)
    after `Õ(ε⁻⁴)` steps. On a finite λ the answer is that of the penalised problem, O(1/λ) off. A
    reconstruction.

    Attributes:
        selection: the value oracle, `PenalisedSelection(penalty, pessimistic)`.
        radius: r. Values wrong by a are amplified to `a n / r` in the direction.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    selection: AbstractSelection = eqx.field(default_factory=PenalisedSelection)
    radius: ScalarLike = eqx.field(converter=jnp.asarray, default=0.1)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    below: ClassVar[LowerAssumption] = LowerAssumption.DOMINATED
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y"
    rate: ClassVar[str] = "ε⁻², Moreau or smoothed gradient"
    paper: ClassVar[str] = "chen2025set"
    status: ClassVar[str] = "experimental"

    @property
    def loop(self) -> Zeroth:
        return Zeroth(self.x_update, self.selection, self.radius)
