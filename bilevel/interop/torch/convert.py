"""From a PyTorch module to a JAX function, and the weights back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from bilevel.files import needs
from bilevel.interop.torch.function import Function

Module = Tensor = Any  # torch.nn.Module and torch.Tensor, which need not be installed


def to_jax(module: Module, *inputs: Tensor, **named: Tensor) -> tuple[dict[str, Array], Function]:
    """The trainable parameters of a module, and its `forward` as a JAX function of them.

    The module is read in the mode that it is in: call `module.eval()` first for running statistics
    and no dropout, `module.train()` for the statistics of each batch and for dropout with a key. It
    stays as it is, and shares no memory with what is returned. Lengths of axes are free unless
    `forward` computes with them (a loop over time); an axis of length 1 stays of length 1, so give
    an example with two rows or more.

    Args:
        module: any `torch.nn.Module` whose `forward` does not branch on values of arrays.
        inputs: an example of each positional tensor that `forward` takes; only shapes and types
            matter. `named` are examples of those passed by name.

    Returns:
        `(params, function)`. `params` maps PyTorch's names to arrays of the same shape and type,
        for parameters with `requires_grad`; parameters that are tied have one entry.
        `function(params, *inputs)` is what `forward` returns.

    Raises:
        ImportError: PyTorch is not installed.
        TypeError: `module` is not a module, or an example not a tensor.
        ValueError: an operation of the module has no form in JAX here (it is named, with its
            layer), `torch.export` cannot read the module, or it is in double precision and JAX
            is not.
    """
    torch = _torch()
    from bilevel.interop.torch.export import read  # it needs PyTorch

    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module is a {type(module).__name__}; a torch.nn.Module is needed.")
    for name, value in {**{str(i): one for i, one in enumerate(inputs)}, **named}.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"example {name} is a {type(value).__name__}; a torch.Tensor is needed. Settings "
                "that are not tensors belong in a module around this one."
            )
    program = read(module, inputs, named)
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    params = {name: _as_array(name, state[name]) for name in program.params.values()}
    buffers = {name: _as_array(name, state[name]) for name in program.buffers.values()}
    function = Function(buffers, program)
    _try(function, params, inputs, named)
    return params, function


def write_back(
    module: Module,
    params: Mapping[str, ArrayLike],
    buffers: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Write arrays into the parameters and buffers of a module, in place.

    Args:
        params, buffers: arrays by PyTorch's names, shaped like the module's tensors, whose types
            and devices stay. What is not named keeps its value.

    Raises:
        ValueError: the module has nothing of that name, or it has another shape. Nothing is
            written then.
    """
    torch = _torch()
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    given = {**params, **(buffers or {})}
    for name, value in given.items():
        if name not in own:
            raise ValueError(f"the module has no parameter or buffer '{name}'.")
        if tuple(own[name].shape) != np.shape(value):
            raise ValueError(
                f"'{name}' has shape {np.shape(value)}; the module's is {tuple(own[name].shape)}."
            )
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(_as_tensor(value))


def _as_array(name: str, tensor: Tensor) -> Array:
    """A copy, of the same type."""
    torch = _torch()
    if tensor.dtype == torch.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"'{name}' is float64, and JAX computes in float32 unless it is told otherwise: call "
            'jax.config.update("jax_enable_x64", True) first, or convert module.float().'
        )
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # NumPy has no type of this name
        return jnp.array(tensor.float().numpy(), jnp.bfloat16)
    return jnp.array(tensor.numpy())


def _torch() -> Any:
    return needs("torch", extra="pytorch", what="modules of PyTorch")


def _as_tensor(value: ArrayLike) -> Tensor:
    value = np.asarray(value)
    known = value.dtype.kind in "biuf"
    return _torch().tensor(value if known else value.astype(np.float32))


def _try(function: Function, params: Any, inputs: Any, named: Any) -> None:
    """Evaluate abstractly on the example's shapes, so that what does not fit is told now."""
    key = jax.eval_shape(lambda: jax.random.key(0))

    def like(tensor: Tensor) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(lambda: _as_array("an example", tensor))

    examples, names = jax.tree.map(like, (inputs, named))
    jax.eval_shape(
        lambda p, xs, ns, key: function(p, *xs, key=key, **ns), params, examples, names, key
    )
