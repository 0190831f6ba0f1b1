"""Inverse RL with networks, for environments of which only samples can be had.

Above, a reward network `max_x E_demos[log π_x(a | s)]`; below, `π_x = exp((Q − V) / τ)`, where a
network Q follows `Q = r_x + γ E[V]`. One step of each alternates.
"""
