"""Reads a module with `torch.export` into a `Program`."""

import warnings
from collections.abc import Mapping
from typing import Any

from bilevel.files import needs
from bilevel.interop.torch.aten import OPERATIONS, RANDOM
from bilevel.interop.torch.program import Input, Node, Program, Ref

torch: Any = needs("torch", extra="pytorch", what="modules of PyTorch")
export: Any = needs("torch.export", extra="pytorch", what="modules of PyTorch")
Module = Tensor = Call = ExportedProgram = Any  # PyTorch's, which need not be installed

# Layers that stay whole, since PyTorch's parts of them are many, or have fixed lengths.
WHOLE = (
    "lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input",
    "adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default",
)  # fmt: skip
CHECKS = ("_assert", "sym_constrain_range")  # of lengths and devices; they compute nothing
PLACES = {"layout", "device", "pin_memory", "memory_format", "non_blocking"}
Tensors = tuple[Tensor, ...]


def read(module: Module, inputs: Tensors, named: Mapping[str, Tensor]) -> Program:
    """The operations of `forward`, as `to_jax` describes.

    Raises:
        ValueError: the module cannot be read, or an operation is unknown.
    """
    exported = _exported(module, inputs, named)
    exported.graph.eliminate_dead_code()
    calls = [node for node in exported.graph.nodes if node.op == "call_function"]
    calls = [call for call in calls if not _name(call).startswith(CHECKS)]
    _refuse_unknown(calls)
    params, buffers, constants = _state(module, exported)
    taken = _taken(exported)
    outputs, updates = _given(exported)
    return Program(
        nodes=tuple(Node(call.name, _name(call), *_arguments(call)) for call in calls),
        outputs=outputs,
        positional=tuple(taken[: len(inputs)]),
        named=dict(zip(named, taken[len(inputs) :], strict=True)),
        params=params,
        buffers=buffers,
        constants=constants,
        updates=updates,
        draws=tuple(dict.fromkeys(_layer(call) for call in calls if _draws(call))),
    )


def _exported(module: Module, inputs: Tensors, named: Mapping[str, Tensor]) -> ExportedProgram:
    """In core operations that change nothing in place, with every length free that may be."""
    free = export.ShapesCollection()
    for one in (*inputs, *named.values()):
        free[one] = dict.fromkeys(range(one.ndim), export.Dim.AUTO)
    table = export.default_decompositions()
    for name in WHOLE:
        op, overload = name.split(".")
        table.pop(getattr(getattr(torch.ops.aten, op), overload))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about itself
            shapes = free.dynamic_shapes(module, inputs, dict(named))
            exported = export.export(module, inputs, dict(named), dynamic_shapes=shapes)
            return exported.run_decompositions(table)
    except Exception as error:
        raise ValueError(
            f"torch.export cannot read {type(module).__name__}: {_first_line(error)} Its forward "
            "must not branch on values of arrays, nor leave PyTorch."
        ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _name(call: Call) -> str:
    """`add.Tensor` for `torch.ops.aten.add.Tensor`, `operator.mul` for Python's."""
    target = call.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removeprefix("aten.")
    return f"operator.{getattr(target, '__name__', target)}"


def _layer(call: Call) -> str:
    """The layer that an operation stands in, by its name in the module."""
    path, _ = list(call.meta.get("nn_module_stack", {"": ("", "")}).values())[-1]
    return f"layer '{path}'" if path else "forward"


def _refuse_unknown(calls: list[Call]) -> None:
    for call in calls:
        name = _name(call)
        if name not in OPERATIONS:
            raise ValueError(
                f"the operation {name} of PyTorch, in {_layer(call)}, has no form in JAX here. "
                "Write that part of forward with other operations."
            )
        if name == "max_pool2d_with_indices.default" and any(n.args[1] == 1 for n in call.users):
            raise ValueError(f"the places of maxima, in {_layer(call)}, have no form in JAX here.")


def _draws(call: Call) -> bool:
    """Dropout in training mode, alone or between the layers of a recurrent one."""
    name, args = _name(call), call.args
    if name == "native_dropout.default":
        return bool(args[2]) and args[1] != 0
    if name.endswith(".input"):
        return bool(args[6]) and args[5] != 0 and args[4] != 1
    return name in RANDOM


def _state(
    module: Module, exported: ExportedProgram
) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Inputs of the graph that are trainable; that are kept; and that are constants."""
    named = dict(module.named_parameters(remove_duplicate=False))
    first = {id(tensor): name for name, tensor in reversed(named.items())}
    params, buffers, constants = {}, {}, {}
    kinds = export.graph_signature.InputKind
    for spec in exported.graph_signature.input_specs:
        if spec.kind == kinds.PARAMETER:
            tensor = named[str(spec.target)]
            (params if tensor.requires_grad else buffers)[spec.arg.name] = first[id(tensor)]
        elif spec.kind == kinds.BUFFER:
            buffers[spec.arg.name] = str(spec.target)
        elif spec.kind == kinds.CONSTANT_TENSOR:
            tensor = exported.constants[str(spec.target)].detach().cpu()
            constants[spec.arg.name] = tensor.numpy() if tensor.ndim else tensor.item()
    return params, buffers, constants


def _taken(exported: ExportedProgram) -> list[Input]:
    """What `forward` takes, in its order."""
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    return [
        Input(name, tuple(n if isinstance(n, int) else None for n in values[name].shape))
        for name in map(str, exported.graph_signature.user_inputs)
    ]


def _given(exported: ExportedProgram) -> tuple[Any, dict[str, Ref]]:
    """What `forward` returns, with its tuples, lists and dicts; and the buffers that it changes."""
    outputs, updates = [], {}
    kinds = export.graph_signature.OutputKind
    for spec in exported.graph_signature.output_specs:
        constant = isinstance(spec.arg, export.graph_signature.ConstantArgument)
        value = spec.arg.value if constant else Ref(spec.arg.name)
        if spec.kind == kinds.USER_OUTPUT:
            outputs.append(value)
        elif spec.kind == kinds.BUFFER_MUTATION:
            updates[str(spec.target)] = value
        else:
            raise ValueError(f"forward changes '{spec.target}' in place; it must make a new array.")
    return _plain(torch.utils._pytree.tree_unflatten(outputs, exported.call_spec.out_spec)), updates


def _plain(tree: Any) -> Any:
    """Classes of outputs that are dicts become dicts."""
    if isinstance(tree, Mapping):
        return {name: _plain(value) for name, value in tree.items()}
    return type(tree)(map(_plain, tree)) if type(tree) in (list, tuple) else tree


def _arguments(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kwargs = {name: value for name, value in call.kwargs.items() if name not in PLACES}
    return _argument(call.args), {name: _argument(value) for name, value in kwargs.items()}


def _argument(value: Any) -> Any:
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, (list, tuple)):
        return tuple(map(_argument, value))
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
