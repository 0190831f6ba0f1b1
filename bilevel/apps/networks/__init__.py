"""Road networks whose travellers choose their own paths, and what a planner can do about it.

The lower problem is the user equilibrium: link flows v minimise `Σ_a ∫_0^{v_a} t_a(u) + τ_a du`
over flows that make all trips, with `t = free (1 + b (v / c)^power)`. The planner minimises
`Σ_a v_a t_a(v_a) + price · x` over tolls τ, added capacities c, or links to be widened.

Reference: LeBlanc. "An algorithm for the discrete network design problem". Transportation Science
1975; Friesz, Tobin, Cho, Mehta. "Sensitivity analysis based heuristic algorithms for mathematical
programs with variational inequality constraints". Mathematical Programming 1990.
"""

from typing import TYPE_CHECKING

from bilevel.lazy import importer

if TYPE_CHECKING:
    from bilevel.apps.networks.assignment import (
        Equilibrium,
        beckmann,
        equilibrium,
        links_of,
        total_time,
    )
    from bilevel.apps.networks.baseline import Found, genetic
    from bilevel.apps.networks.design import Designed, first_best_tolls, improve, plan
    from bilevel.apps.networks.losses import Design, Evaluator, Kind, problem, start
    from bilevel.apps.networks.network import Network, read

__all__ = [
    "Design",
    "Designed",
    "Equilibrium",
    "Evaluator",
    "Found",
    "Kind",
    "Network",
    "beckmann",
    "equilibrium",
    "first_best_tolls",
    "genetic",
    "improve",
    "links_of",
    "plan",
    "problem",
    "read",
    "start",
    "total_time",
]

__getattr__ = importer(
    __name__,
    {
        "bilevel.apps.networks.assignment": (
            "Equilibrium",
            "beckmann",
            "equilibrium",
            "links_of",
            "total_time",
        ),
        "bilevel.apps.networks.baseline": ("Found", "genetic"),
        "bilevel.apps.networks.design": ("Designed", "first_best_tolls", "improve", "plan"),
        "bilevel.apps.networks.losses": ("Design", "Evaluator", "Kind", "problem", "start"),
        "bilevel.apps.networks.network": ("Network", "read"),
    },
)
