"""Operations on each entry. Where a kink has two slopes, the derivative is PyTorch's."""

import operator

import jax
import jax.numpy as jnp


def add(a, b, *, alpha=1):
    return a + b if alpha == 1 else a + alpha * b


def sub(a, b, *, alpha=1):
    return a - b if alpha == 1 else a - alpha * b


def div(a, b, *, rounding_mode=None):
    if rounding_mode == "floor":
        return a // b
    if rounding_mode == "trunc":
        return jnp.trunc(a / b).astype(jnp.result_type(a, b))
    whole = all(jnp.issubdtype(jnp.result_type(one), jnp.integer) for one in (a, b))
    return jnp.asarray(a, jnp.float32) / b if whole else a / b


def power(a, b):
    """Whole exponents stay numbers of the program, so that the derivative at 0 is finite."""
    return a ** (int(b) if isinstance(b, float) and b.is_integer() else b)


def clamp(a, low=None, high=None):
    """The derivative is 1 at the bounds."""
    a = a if low is None else jnp.where(a < low, low, a)
    return a if high is None else jnp.where(a > high, high, a)


def hardtanh(a, low=-1.0, high=1.0):
    """The derivative is 0 at the bounds."""
    return jnp.where(a <= low, low, jnp.where(a >= high, high, a))


def elu(a, alpha=1.0, scale=1.0, input_scale=1.0):
    below = alpha * jnp.expm1(input_scale * jnp.where(a > 0, 0, a))
    return scale * jnp.where(a > 0, a, below)


def leaky_relu(a, slope=0.01):
    return jnp.where(a > 0, a, slope * a)


def gelu(a, *, approximate="none"):
    return jax.nn.gelu(a, approximate=approximate == "tanh")


UNARY = {
    "abs": jnp.abs, "acos": jnp.arccos, "asin": jnp.arcsin, "atan": jnp.arctan,
    "bitwise_not": jnp.bitwise_not, "ceil": jnp.ceil, "cos": jnp.cos, "cosh": jnp.cosh,
    "erf": jax.lax.erf, "exp": jnp.exp, "expm1": jnp.expm1, "floor": jnp.floor,
    "isinf": jnp.isinf, "isnan": jnp.isnan, "log": jnp.log, "log10": jnp.log10,
    "log1p": jnp.log1p, "log2": jnp.log2, "logical_not": jnp.logical_not, "neg": jnp.negative,
    "reciprocal": lambda a: 1 / a, "relu": jax.nn.relu, "round": jnp.round,
    "rsqrt": jax.lax.rsqrt, "sigmoid": jax.nn.sigmoid, "sign": jnp.sign, "sin": jnp.sin,
    "sinh": jnp.sinh, "sqrt": jnp.sqrt, "tan": jnp.tan, "tanh": jnp.tanh, "trunc": jnp.trunc,
    "elu": elu, "gelu": gelu, "hardtanh": hardtanh, "leaky_relu": leaky_relu, "clamp": clamp,
    "maximum": jnp.maximum, "minimum": jnp.minimum, "atan2": jnp.arctan2,
    "logical_and": jnp.logical_and, "logical_or": jnp.logical_or, "logical_xor": jnp.logical_xor,
}  # fmt: skip
BINARY = {
    "add": add, "sub": sub, "mul": operator.mul, "div": div, "remainder": jnp.remainder,
    "fmod": jnp.fmod, "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "bitwise_and": operator.and_,
    "bitwise_or": operator.or_, "bitwise_xor": operator.xor,
}  # fmt: skip
# Lengths of axes are Python's numbers.
NUMBERS = {
    name: getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "getitem")
}
OPERATIONS = {
    **{f"{name}.default": op for name, op in UNARY.items()},
    **{f"{name}.{kind}": op for name, op in BINARY.items() for kind in ("Tensor", "Scalar")},
    **{f"operator.{name}": op for name, op in NUMBERS.items()},
    "operator.sym_float": float,
    "div.Tensor_mode": div,
    "div.Scalar_mode": div,
    "pow.Tensor_Scalar": power,
    "pow.Tensor_Tensor": power,
    "pow.Scalar": power,
    "clamp.Tensor": clamp,
    "where.self": jnp.where,
}
