"""A converted module: a pure function of its parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from bilevel.interop.torch.program import Input, Program, evaluate


class Function(eqx.Module):
    """`forward` of a PyTorch module in JAX, in the mode it had: `net(params, x)`.

    Arrays are laid out as in PyTorch: images are (n, channels, height, width). It can be compiled,
    mapped and differentiated any number of times.

    Attributes:
        buffers: what the module keeps beside its trainable parameters, by PyTorch's names: running
            statistics of batch normalisation, and parameters with `requires_grad=False`.
        program: its operations.
    """

    buffers: dict[str, Array]
    program: Program = eqx.field(static=True, repr=False)

    def __call__(
        self,
        params: Mapping[str, Array],
        *inputs: ArrayLike,
        key: PRNGKeyArray | None = None,
        **named: ArrayLike,
    ) -> Any:
        """What `forward` returns; new running statistics are dropped.

        Args:
            params: shaped like those that `to_jax` returned.
            inputs: arrays for the positional arguments of `forward`; `named` for the others.
            key: a JAX key for dropout, where the module was converted in training mode.

        Raises:
            ValueError: arrays are missing, unknown or of another shape; a key is needed.
        """
        return self.apply(params, self.buffers, *inputs, key=key, **named)[0]

    def apply(
        self,
        params: Mapping[str, Array],
        buffers: Mapping[str, Array],
        *inputs: ArrayLike,
        key: PRNGKeyArray | None = None,
        **named: ArrayLike,
    ) -> tuple[Any, dict[str, Array]]:
        """What `forward` returns, and the buffers after it.

        Batch normalisation in training mode uses the batch's statistics and moves the running
        ones; in evaluation mode buffers stay.

        Raises:
            ValueError: arrays are missing, unknown or of another shape; a key is needed.
        """
        program = self.program
        _expect("parameter", params, program.params.values())
        _expect("buffer", buffers, program.buffers.values())
        if program.draws and key is None:
            raise ValueError(
                f"the module was converted in training mode, and {', '.join(program.draws)} "
                "draws at random: pass key=jax.random.key(...), or convert module.eval()."
            )
        given = _named(inputs, named, program)
        return evaluate(program, params, buffers, given, key)


def _expect(kind: str, given: Mapping[str, Any], names: Any) -> None:
    missing, unknown = sorted({*names} - {*given}), sorted({*given} - {*names})
    for problem, found in (("is missing", missing), ("is not the module's", unknown)):
        if found:
            raise ValueError(
                f"{kind} '{found[0]}' {problem}: a dict with the names that to_jax returned is "
                "needed."
            )


def _named(
    inputs: Sequence[ArrayLike], named: Mapping[str, ArrayLike], program: Program
) -> dict[str, Array]:
    """The inputs by the program's names, after a look at their shapes."""
    if len(inputs) != len(program.positional) or named.keys() != program.named.keys():
        wanted, given = (f" and {sorted(n)}" if n else "" for n in (program.named, named))
        raise ValueError(
            f"the module was converted with {len(program.positional)} positional inputs{wanted}; "
            f"it is called with {len(inputs)}{given}."
        )
    pairs = [*zip(program.positional, inputs, strict=True)]
    pairs += [(one, named[name]) for name, one in program.named.items()]
    return {one.name: _checked(one, jnp.asarray(value)) for one, value in pairs}


def _checked(wanted: Input, value: Array) -> Array:
    fits = len(value.shape) == len(wanted.shape) and all(
        want is None or have == want for have, want in zip(value.shape, wanted.shape, strict=True)
    )
    if not fits:
        shape = ", ".join("any" if n is None else str(n) for n in wanted.shape)
        raise ValueError(
            f"input '{wanted.name}' has shape {value.shape}; the module was converted for "
            f"({shape}). Lengths that forward computes with are those of the example."
        )
    return value
