"""Power control in a wireless network whose surroundings change from episode to episode.

A neural network x maps channel gains to transmit powers. Samples come in episodes, and only a few
can be kept. The lower problem gives weight to the samples that the network serves worst; the upper
one trains the network on the weighted samples:

    min over x of  Σ_i y_i*(x) loss_i(x)   where   y*(x) maximises Σ_i y_i loss_i(x) on the simplex

which is a min-max problem (GDA). `loss_i = 1 − rate_i / rate of WMMSE`. After an episode the
samples with the largest weights are kept, so that old surroundings are not forgotten.

Paper: Sun, Pu, Fu, Chang, Hong. "Learning to continuously optimize wireless resource in a
dynamic environment: a bilevel optimization perspective". IEEE Trans. Signal Process. 2022,
arXiv:2105.01696.
"""

from bilevel.apps.wireless.channels import KINDS, channels, rate, wmmse
from bilevel.apps.wireless.learn import Memory, learn, served
from bilevel.apps.wireless.problem import Samples, powers, problem, samples, start

__all__ = [
    "KINDS",
    "Memory",
    "Samples",
    "channels",
    "learn",
    "powers",
    "problem",
    "rate",
    "samples",
    "served",
    "start",
    "wmmse",
]
