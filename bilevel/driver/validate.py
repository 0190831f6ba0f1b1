"""Wrong uses, refused before anything compiles: what was wrong, what is needed, how to mend it."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from jax.tree_util import Partial, keystr, tree_leaves_with_path

from bilevel.data import Data, Feed, InBlocks, Parts, Picked, Random, Rows, Slices, UnevenParts
from bilevel.methods.base import AbstractMethod, Unsupported, all_methods
from bilevel.problem import Batch, Problem, Structure


def check_steps(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; a whole number of at least 1 is needed.")


def check_arguments(data: Any, key: Any, callbacks: Iterable[Any]) -> None:
    if data is not None and not isinstance(data, Data):
        raise TypeError(
            f"data is of type {type(data).__name__}; bl.Data(upper=..., lower=...) is needed."
        )
    if key is not None and (not hasattr(key, "dtype") or not hasattr(key, "shape")):
        raise TypeError(f"key is {key!r}; a random key is needed, such as jax.random.key(0).")
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks holds {callback!r}; functions of (step, state, row) do.")


def check_problem(problem: Any) -> None:
    if not isinstance(problem, Problem):
        raise TypeError(
            f"problem is of type {type(problem).__name__}; bl.Problem(upper, lower) is needed."
        )


def check_method(method: Any, problem: Any) -> None:
    check_problem(problem)
    if isinstance(method, type) and issubclass(method, AbstractMethod):
        raise TypeError(f"method is the class {method.__name__}; create one: {method.__name__}().")
    if not isinstance(method, AbstractMethod):
        raise TypeError(
            f"method is of type {type(method).__name__}; one of bilevel.methods is needed."
        )
    method.check(problem)


def check_rows(problem: Problem, y: Any) -> None:
    """Every leaf of y has a row for each block of the problem."""
    m = problem.blocks
    for path, leaf in tree_leaves_with_path(y) if m is not None else ():
        if jnp.shape(leaf)[:1] != (m,):
            raise ValueError(
                f"y0{keystr(path)} is {_shape(leaf)}, and the problem declares blocks={m}: every "
                f"leaf of y0 needs a leading axis of {m}, one row a block."
            )


def check_blocks(method: AbstractMethod, problem: Problem, data: Data | Feed) -> None:
    """The data have an entry for each block, and blocks are drawn for methods that ask for it.

    Raises:
        Unsupported: the data draw blocks, and the method takes all of them.
    """
    m = problem.blocks
    for level in ("upper", "lower"):
        source = getattr(data, level)
        if isinstance(source, InBlocks | Picked):
            told = f"Data(blocks={source.drawn})"
            if Structure.BLOCKS not in method.supports:
                able = sorted(k.__name__ for k in all_methods() if Structure.BLOCKS in k.supports)
                raise Unsupported(
                    f"{type(method).__name__} cannot use {told}, as it takes all blocks in every "
                    f"step: leave blocks out. Methods that draw blocks: {', '.join(able)}."
                )
            if m is None:
                raise ValueError(
                    f"{told} draws blocks, but the problem declares none. Say how many there are: "
                    "Problem(upper, lower, blocks=m)."
                )
        elif m is not None and isinstance(source, Rows | Slices | Random | Parts | UnevenParts):
            raise ValueError(
                f"Data.batch_size takes rows of the leading axis, which are the {m} blocks of the "
                "problem: leave it out, or draw blocks with Data(..., blocks=...)."
            )
        arrays = getattr(source, "arrays", None)
        found = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(arrays)}
        if m is not None and found - {(m,)}:
            raise ValueError(
                f"Data.{level} = {_shape(arrays)}, and the problem declares blocks={m}: every "
                f"leaf needs a leading axis of {m}, one entry a block."
            )


def check_each_loss(problem: Problem, x: Any, y: Any, batch: Batch) -> dict[str, Any]:
    """Both losses take (x, y, batch) and return one floating number; how they compute it."""
    traced = {}
    for level in ("upper", "lower"):
        loss = getattr(problem, level)
        check_arity(level, loss, ("x", "y", "batch"))
        name = f"Problem.{level}"
        traced[level], out = _trace(name, loss, x, y, getattr(batch, level))
        check_scalar(name, out, "Reduce over the batch, for example with .mean().")
    return traced


def check_some_blocks(problem: Problem, state: Any, batch: Batch, data: Data) -> None:
    """Both losses take some of the blocks: as many rows of y as the batch has."""
    if data.blocks is None:
        return
    some = jax.tree.map(lambda leaf: leaf[: data.blocks], (state.y, batch))
    for level in ("upper", "lower"):
        loss, (y, part) = getattr(problem, level), some
        name = f"Problem.{level}, given {data.blocks} of {problem.blocks} blocks,"
        _trace(name, loss, state.x, y, getattr(part, level))


def check_variable(name: str, tree: Any) -> None:
    """A starting point: at least one array, all floating, all finite."""
    leaves = tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name} holds no arrays; a pytree of floating arrays is needed.")
    for path, leaf in leaves:
        label = f"{name}{keystr(path)}"
        try:
            leaf = jnp.asarray(leaf)
        except (TypeError, ValueError):
            raise TypeError(
                f"{label} is of type {type(leaf).__name__}; an array is needed. Split a module "
                "first: eqx.partition(model, eqx.is_inexact_array)."
            ) from None
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{label} is {_shape(leaf)}; only floating arrays can be optimised. Convert it, "
                f"for example with .astype(float), or keep it out of {name}."
            )
        if not bool(jnp.isfinite(leaf).all()):
            raise ValueError(f"{label} contains a NaN or an infinity; start from a finite point.")


def check_state(state: Any) -> None:
    if not all(hasattr(state, name) for name in ("x", "y", "k")):
        raise TypeError(
            f"state is of type {type(state).__name__}; a method's state is needed, such as "
            "result.state or what method.init returns."
        )


def check_losses(problem: Problem, state: Any, batch: Batch) -> None:
    """Both losses take (x, y, batch), return one floating number, and depend on y."""
    x, y = state.x, state.y
    if problem.hypergradient is not None:
        check_arity("hypergradient", problem.hypergradient, ("x", "y", "batch"))
    if told := uncoupled(problem, x, y, check_each_loss(problem, x, y, batch)):
        raise ValueError(told)


def uncoupled(problem: Problem, x: Any, y: Any, traced: Mapping[str, Any]) -> str | None:
    """Why the two levels do not depend on each other, if so; takes what `check_each_loss` gave."""
    for level, jaxpr in traced.items():
        first = len(jax.tree.leaves(x))
        used = _used_inputs(jaxpr.jaxpr)
        declared = problem.hypergradient is not None or problem.lower_step is not None
        sees_y = any(used[first : first + len(jax.tree.leaves(y))])
        sees_y = sees_y or (level == "upper" and problem.upper_set.moves)
        if not sees_y and not declared:
            return (
                f"Problem.{level} does not depend on y, so the two levels are not coupled. "
                f"Check that {level}(x, y, batch) uses its second argument."
            )
        coupled = any(used[:first]) or declared or problem.lower_set.moves
        if level == "lower" and not coupled:
            return (
                "Problem.lower does not depend on x, so y*(x) is the same for every x. Are upper "
                "and lower swapped?"
            )
    return None


def check_sets(problem: Problem, x: Any, y: Any) -> None:
    """The sets fit the variables' shapes."""
    for name, a_set, z in (
        ("upper_set", problem.upper_set, x),
        ("lower_set", problem.lower_set, y),
    ):
        if not a_set.projectable:
            continue
        other = x if name == "lower_set" else None
        try:
            out = jax.eval_shape(a_set.project, z, other)
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(
                f"{name} ({type(a_set).__name__}) does not fit {_variable(name)}0 = "
                f"{_shape(z)}: {_first_line(error)}"
            ) from error
        if jax.tree.map(jnp.shape, out) != jax.tree.map(jnp.shape, z):
            raise ValueError(
                f"{name} ({type(a_set).__name__}) turns {_variable(name)}0 = {_shape(z)} into "
                f"{_shape(out)}; check the shapes of its fields."
            )


def check_step(method: AbstractMethod, problem: Problem, state: Any, feed: Feed) -> list[str]:
    """A step fits the samples and returns a state like the one it was given.

    Returns the names of what a step reports, sorted.
    """
    name = type(method).__name__
    mine = jax.eval_shape(method.init, problem, state.x, state.y)
    if jax.tree.structure(mine) != jax.tree.structure(state):
        raise ValueError(
            f"{name} cannot step from this state, a {type(state).__name__}; it needs one made by "
            f"{name}.init with the same updates."
        )

    def step(state, feed):
        return method.step(problem, state, feed.batch(state.k))

    try:
        new, info = jax.eval_shape(step, state, feed)
    except Exception as error:
        raise ValueError(
            f"{name} cannot step from this state on these samples: {_first_line(error)}"
        ) from error
    for (path, old), leaf in zip(tree_leaves_with_path(state), jax.tree.leaves(new), strict=True):
        if (jnp.shape(old), jnp.result_type(old)) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"a step of {name} turns state{keystr(path)} from {_shape(old)} into "
                f"{_shape(leaf)}; a declared hypergradient or lower_step must return trees like "
                "x and y."
            )
    return sorted(info)


def check_metrics(
    metrics: Mapping[str, Callable] | None, x: Any, y: Any, taken: Iterable[str]
) -> None:
    """Functions of (x, y) that return one number, under names that the history does not use."""
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        raise TypeError("metrics is a mapping from names to functions of (x, y).")
    for name, fn in metrics.items():
        if name in taken:
            raise ValueError(f"metrics[{name!r}] hides a column of the history; name it otherwise.")
        if not callable(fn):
            raise TypeError(f"metrics[{name!r}] is not callable; fn(x, y) -> number is needed.")
        check_arity(f"metrics[{name!r}]", fn, ("x", "y"))
        _, out = _trace(f"metrics[{name!r}]", fn, x, y)
        check_scalar(f"metrics[{name!r}]", out, "Reduce it to one number.", floating=False)


def check_arity(name: str, fn: Callable, arguments: tuple[str, ...]) -> None:
    fn = fn.func if isinstance(fn, Partial) and not fn.args and not fn.keywords else fn
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return
    call = f"{name}({', '.join(arguments)})"
    try:
        signature.bind(*arguments)
    except TypeError:
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        n = sum(p.kind in positional for p in signature.parameters.values())
        mend = (
            "Add a third; it is None when there is no data."
            if n == 2 and len(arguments) == 3
            else f"Give it {_number(len(arguments))}."
        )
        raise TypeError(
            f"{name} is called as {call} but takes {_number(n)} "
            f"argument{'s' if n != 1 else ''}. {mend}"
        ) from None


def check_scalar(name: str, out: Any, mend: str, floating: bool = True) -> None:
    if jax.tree.structure(out) != jax.tree.structure(0):
        hint = {tuple: " Return the loss alone.", type(None): " Is a return missing?"}
        told = "None" if out is None else f"a {type(out).__name__}"
        raise TypeError(f"{name} returned {told}; a scalar is needed.{hint.get(type(out), '')}")
    if out.shape != ():
        raise TypeError(f"{name} returned {_shape(out)}; a scalar is needed. {mend}")
    if floating and not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"{name} returned {_shape(out)}; a floating scalar is needed.")


def _trace(name: str, fn: Callable, *args: Any):
    try:
        return jax.make_jaxpr(fn, return_shape=True)(*args)
    except Exception as error:
        told = ", ".join(
            f"{label} = {_shape(arg)}"
            for label, arg in zip(("x", "y", "batch"), args, strict=False)
        )
        forgotten = len(args) == 3 and args[2] is None
        hint = ". It got no data: give bl.Data(upper=..., lower=...)" if forgotten else ""
        raise ValueError(
            f"{name} could not be evaluated at {told}: {type(error).__name__}: "
            f"{_first_line(error)}{hint}"
        ) from error


def _used_inputs(jaxpr) -> list[bool]:
    """Which inputs the output depends on, inside nested functions too."""
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]


def _variable(name: str) -> str:
    return {"upper_set": "x", "lower_set": "y"}[name]


def _shape(tree: Any) -> str:
    """A tree as shapes: float32[3], {w: float32[3,2], b: float32[2]}."""

    def leaf(value) -> str:
        dtype = jnp.result_type(value)
        return f"{dtype.name}[{','.join(map(str, jnp.shape(value)))}]"

    if tree is None:
        return "None"
    shapes = jax.tree.map(leaf, tree)
    return str(shapes).replace("'", "")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _number(n: int) -> str:
    return {0: "no", 1: "one", 2: "two", 3: "three", 4: "four"}.get(n, str(n))
