"""Reinforcement learning with two levels: rewards learned above policies.

Inverse RL finds a reward from demonstrations: `max_θ E_demos[Σ_t γ^t log π_θ(a_t | s_t)]`, where
`π_θ = argmax_π E_π[Σ_t γ^t (r_θ(s_t, a_t) + τ H(π(· | s_t)))]`. The modules beside it set other
upper losses above a policy: an actor above a critic, preferences, alignment of given rewards,
constraints, budgets of reasoning steps, and feedback that never ends.

Reference: Zeng, Li, Garcia, Hong. "Maximum-likelihood inverse reinforcement learning with
finite-time guarantees". NeurIPS 2022, arXiv:2210.01808.
"""
