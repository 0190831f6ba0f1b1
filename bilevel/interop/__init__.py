"""Models of other libraries as JAX functions: `bilevel.interop.torch` for PyTorch."""

from bilevel.interop import torch as torch
