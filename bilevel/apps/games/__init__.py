"""Games of a leader and a follower: duopoly, security, min-max, and linear bilevel programs.

The leader chooses x, the follower answers with `y*(x) = argmin_y g(x, y)`, and the leader minimises
`f(x, y*(x))`. Smooth games are a `bl.Problem`; linear and convex-quadratic ones, with whole numbers
or not, are solved to a proven gap by `bilevel.mip`.

Reference: von Stackelberg. "Marktform und Gleichgewicht". 1934; Conitzer, Sandholm. "Computing the
optimal strategy to commit to". EC 2006; Dempe. "Foundations of bilevel programming". 2002.
"""

from typing import TYPE_CHECKING

from bilevel.lazy import importer

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

__getattr__ = importer(
    __name__,
    {
        "bilevel.apps.games.problem": ("duopoly", "min_max", "quantal_response"),
        "bilevel.apps.games.run": ("read",),
        "bilevel.apps.games.security": ("Commitment", "Payoffs", "commit"),
    },
)
