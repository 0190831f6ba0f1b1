"""Games of a leader and a follower: duopoly, security, min-max, and linear bilevel programs.

The leader chooses x, the follower answers with `y*(x) = argmin_y g(x, y)`, and the leader minimises
`f(x, y*(x))`. Smooth games are a `bl.Problem`; linear and convex-quadratic ones, with whole numbers
or not, are solved to a proven gap by `bilevel.mip`.

Reference: von Stackelberg. "Marktform und Gleichgewicht". 1934; Conitzer, Sandholm. "Computing the
optimal strategy to commit to". EC 2006; Dempe. "Foundations of bilevel programming". 2002.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilevel.apps.games.problem import duopoly, min_max, quantal_response
    from bilevel.apps.games.run import read
    from bilevel.apps.games.security import Commitment, Payoffs, commit

__all__ = [
    "Commitment",
    "Payoffs",
    "commit",
    "duopoly",
    "min_max",
    "quantal_response",
    "read",
]


def __getattr__(name: str) -> Any:  # at first use, so that the command line starts without JAX
    if name in __all__:
        for home in ("problem", "security", "run"):
            module = importlib.import_module(f"bilevel.apps.games.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
