"""Small problems with known solutions, for tests, examples and benchmarks.

Every factory returns a `Case`; `ALL` contains them by name:

    case = bilevel.problems.quad()
    case.problem, case.x0, case.y0        # what a method gets
    case.x_star, case.gradient(case.x0)   # what it should find

Each takes the `dtype` of its arrays; JAX's default when absent.
"""

from bilevel.problems.affine import eqeq
from bilevel.problems.branches import fold, fold_jump, well_a, well_b, well_ns
from bilevel.problems.case import Case
from bilevel.problems.constrained import boxed, lower_box
from bilevel.problems.coupled import couple1, cptoy, cvxcpl, mmcouple, upcon
from bilevel.problems.curved import curv
from bilevel.problems.flat import plsin, rank1, sine
from bilevel.problems.jumps import bardlp, bardlp_inside, lpjump, lpjump_q, toll
from bilevel.problems.kinks import box14, halfplane, kink1, randqp, sqrtkink
from bilevel.problems.manifold import circle
from bilevel.problems.quadratic import blocks, blocks_noise, nested, quad, quad_noise
from bilevel.problems.ridge import ridge, ridge_rows
from bilevel.problems.saddle import minmax
from bilevel.problems.scalar import scalar, shifted

__all__ = [
    "ALL",
    "Case",
    "bardlp",
    "bardlp_inside",
    "blocks",
    "blocks_noise",
    "box14",
    "boxed",
    "couple1",
    "cptoy",
    "curv",
    "cvxcpl",
    "eqeq",
    "fold",
    "fold_jump",
    "halfplane",
    "kink1",
    "lower_box",
    "lpjump",
    "lpjump_q",
    "minmax",
    "mmcouple",
    "nested",
    "plsin",
    "quad",
    "quad_noise",
    "randqp",
    "rank1",
    "ridge",
    "ridge_rows",
    "scalar",
    "shifted",
    "sine",
    "sqrtkink",
    "toll",
    "upcon",
    "well_a",
    "well_b",
    "well_ns",
]

ALL = {
    factory.__name__: factory
    for factory in (
        *(couple1, cptoy, cvxcpl, mmcouple, upcon),
        *(lpjump, lpjump_q, toll, bardlp, bardlp_inside),
        *(quad, quad_noise, nested, blocks, blocks_noise, boxed, lower_box),
        *(eqeq, rank1, plsin, sine),
        *(circle, fold, fold_jump, well_a, well_b, well_ns),
        *(kink1, halfplane, sqrtkink, box14, randqp),
        *(curv, scalar, shifted, minmax, ridge, ridge_rows),
    )
}
