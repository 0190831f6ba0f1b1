"""Which sources of data help: their weights in training, learned from a trusted file.

`min_x f(y*(x))` with `y*(x) = argmin_y Σ_k p_k(x) ℓ_k(y)` and `p = softmax(x)`: f is the loss on
the trusted samples, ℓ_k the mean loss on source k.

Reference: Pan, Zhang, Zhang, Liu, Wang, Zhang. "ScaleBiO: Scalable bilevel optimization for LLM
data reweighting". 2024, arXiv:2406.19976.
"""
