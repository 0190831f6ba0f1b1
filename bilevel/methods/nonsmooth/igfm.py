"""IGFM: the inexact gradient-free method, for lower minimisers that are not unique.

Chen, Xu, Zhang. "On finding small hyper-gradients in bilevel optimization: hardness results and
improved analysis". COLT 2024, arXiv:2301.00712 (first as "Bilevel optimization without lower-level
strong convexity from the hyper-objective perspective").
Differs from the paper: if the lower loss is too high, the value oracle takes steps of size 1/L.
"""

from typing import ClassVar

import equinox as eqx
from jaxtyping import ScalarLike

from bilevel.fields import positive
from bilevel.hypergrad import AbstractSelection, SwitchingGradient
from bilevel.methods.base import LoopMethod, LowerAssumption
from bilevel.methods.nonsmooth.zeroth import Zeroth
from bilevel.problem import Structure
from bilevel.updates import AbstractUpdate, as_update


class IGFM(LoopMethod):
    """Zeroth order in x: differences of the optimistic hyper-objective in random directions.

    x moves along `n/(2r) (l(x + r u) − l(x − r u)) u`, u uniform on the unit sphere, where
    `l(x) = min f(x, y)` over the lower minimisers y is computed by the switching gradient method. A
    step takes two values of l, each by `first_steps + steps` gradients. Assumes f and g convex in
    y, and a g that grows away from its minimisers (Polyak-Łojasiewicz or sharper), so that l is
    Lipschitz. The paper shows that l is intractable if the lower loss is only convex. A random
    iterate, the output in the paper, is a (δ, ε)-Goldstein stationary point with δ = r after
    `O(n^{3/2} δ⁻¹ ε⁻⁴)` values.

    Attributes:
        selection: the value oracle; any selection of `bilevel.hypergrad`.
        radius: r. An error a of the values gives an error of `a n / r` in the direction.
    """

    x_update: AbstractUpdate = eqx.field(converter=as_update, default=1e-1)
    selection: AbstractSelection = eqx.field(default_factory=SwitchingGradient)
    radius: ScalarLike = positive(0.1)

    supports: ClassVar = frozenset({Structure.UPPER_SET, Structure.LOWER_SET})
    below: ClassVar[LowerAssumption] = LowerAssumption.DOMINATED
    samples: ClassVar[bool] = False
    memory: ClassVar[str] = "x, y"
    rate: ClassVar[str] = "n^{3/2} δ⁻¹ ε⁻² values, (δ, √ε)-Goldstein"
    paper: ClassVar[str] = "chen2024finding"

    @property
    def loop(self) -> Zeroth:
        return Zeroth(self.x_update, self.selection, self.radius)
