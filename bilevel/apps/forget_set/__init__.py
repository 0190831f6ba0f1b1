"""Worst-case forget sets: the samples that unlearning fails to make a model forget.

The upper variable w chooses m of n samples, relaxed to `{0 <= w <= 1, Σ w = m}`; the upper loss is
`Σ_i w_i ℓ_i(θ_u(w)) + decay ‖w‖²`, small where the chosen samples are still predicted well after
unlearning. The lower problem is the unlearning itself, some steps from the original model that
train on sample i with weight `1 − w_i` and forget it with weight w_i. The steps follow the sign of
the gradient, whose derivative in w is zero almost everywhere, so that the hypergradient is
`ℓ_i(θ_u) + 2 decay w_i` without an implicit term. Both are declared to `bl.Problem`, and the
method is BA, every descent started at the original model.

    chosen = forget_set.select(losses, forgetting, params, n, m=200)

Reference: Fan, Liu, Hero, Liu. "Challenging forgets: unveiling the worst-case forget sets in
machine unlearning". ECCV 2024, arXiv:2403.07362.
"""

from bilevel.apps.forget_set.select import Selected, method, problem, select

__all__ = ["Selected", "method", "problem", "select"]
