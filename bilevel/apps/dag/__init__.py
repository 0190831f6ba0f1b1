"""Directed acyclic graphs from data: the best order of the variables, by topological swaps (TOPO).

The upper variable is an order o of the columns of X; the lower problem regresses each column on
those before it, `W*(o) = argmin_W ‖X − X W‖² / 2n` with `W_ij = 0` unless i is before j in o. The
upper loss is the same score at `W*(o)`, `½ Σ_j (variance of column j that is left)`. With noise of
equal variance on all columns its minimiser is an order of the true graph.

The upper variable is discrete and the lower problem solved in closed form, by one Cholesky
factorisation, so this application needs no gradients and no JAX: NumPy only.

`score` has the lower problem, `topo` the search, `notears` the method that it is compared with,
`graphs` random graphs and distances, `run` the command `bilevel dag data.csv`.

Paper: Deng, Bello, Aragam, Ravikumar. "Optimizing NOTEARS objectives via topological swaps".
ICML 2023, arXiv:2305.17277.
"""
