"""PyTorch modules as JAX functions, and their weights written back.

    from bilevel.interop.torch import to_jax, write_back

    params, net = to_jax(module, example)  # a dict of arrays, and a function
    net(params, inputs)  # under jit, grad and vmap, any number of times
    write_back(module, params)

`torch.export` reads the module once, as a list of PyTorch's core operations, and each of these has
its form in JAX here. PyTorch takes no part in what is then computed.

PyTorch is imported at the first call, and not installed with bilevel:
`pip install 'bilevel[pytorch]'`.
"""

from bilevel.interop.torch.convert import to_jax, write_back
from bilevel.interop.torch.function import Function

__all__ = ["Function", "to_jax", "write_back"]
