"""The followers of `benchmarks.zoo`: functions of (functions, x, y), for NumPy and JAX alike."""

from collections.abc import Callable
from typing import Any, NamedTuple

Loss = Callable[[Any, Any, Any], Any]


class Case(NamedTuple):
    """A leader, a follower, and whether there is a solution."""

    name: str
    kind: str
    lower: Loss
    upper: Loss
    rows: tuple[Loss, ...] = ()  # `<= 0`: a list of rows of y at x
    y0: tuple[float, ...] = (0.4,)
    x0: tuple[float, ...] = (0.3,)
    box: tuple[float, float] | None = None  # of y; a side may be infinite
    y_range: tuple[float, float] = (-6.0, 6.0)  # for brute force; holds every answer
    x_range: tuple[float, float] = (-2.0, 2.0)
    bounded_x: bool = True
    exists: bool = True
    scale: float = 1.0  # how much the lower loss moves

    def lower_set(self, bl: Any, jnp: Any) -> Any:
        """As the library takes it."""
        parts = []
        if self.box is not None:
            parts.append(bl.sets.Box(*self.box))
        rows = self.rows if self.box is None else self.rows[1:]
        for each in rows:
            parts.append(bl.sets.Coupled(lambda x, y, each=each: jnp.stack(each(jnp, x, y))))
        return tuple(parts) if parts else None


def near(a: float, b: float = 0.0, weight: float = 0.1) -> Loss:
    """A leader that wants y at a, and x at b a little."""
    return lambda F, x, y: ((y - a) ** 2).sum(0) + weight * (x[0] - b) ** 2


def one(function: Callable[[Any, Any, Any], Any]) -> Loss:
    """A lower loss of one number x and one number y."""
    return lambda F, x, y: function(F, x[0], y[0])


def two(function: Callable[[Any, Any, Any, Any], Any]) -> Loss:
    """A lower loss of one number x and two numbers y."""
    return lambda F, x, y: function(F, x[0], y[0], y[1])


def boxed(lo: float, hi: float) -> Loss:
    """The rows of a box of y."""
    inf = float("inf")

    def rows(F, x, y):
        low = [lo - part for part in y] if lo > -inf else []
        return low + ([part - hi for part in y] if hi < inf else [])

    return rows


INF = float("inf")


def _case(kind, name, lower, upper=None, **given) -> Case:
    if (box := given.get("box")) is not None:
        given["rows"] = (boxed(*box), *given.get("rows", ()))
    return Case(f"{kind}: {name}", kind, lower, upper or near(1.0), **given)


def _flat() -> list[Case]:
    return [
        _case("flat", "constant", one(lambda F, x, y: 0 * y), box=(-2, 2)),
        _case(
            "flat", "valley of width 1", one(lambda F, x, y: F.maximum(F.abs(y - x) - 0.5, 0) ** 2)
        ),
        _case("flat", "half-line", one(lambda F, x, y: F.maximum(x - y, 0) ** 2), near(-1.0)),
        _case(
            "flat", "a line in the plane", two(lambda F, x, u, v: (u + v - x) ** 2), y0=(0.4, 0.1)
        ),
        _case(
            "flat",
            "a wedge",
            two(lambda F, x, u, v: F.maximum(u + v - x, 0) ** 2),
            y0=(0.4, 0.1),
            box=(-2, 2),
            y_range=(-2, 2),
        ),
        _case(
            "flat",
            "free of one entry",
            two(lambda F, x, u, v: (u - x) ** 2 + 0 * v),
            y0=(0.4, 0.1),
            box=(-2, 2),
            y_range=(-2, 2),
        ),
        _case(
            "flat",
            "edge of a square",
            two(lambda F, x, u, v: u - x),
            y0=(0.4, 0.1),
            box=(-1, 1),
            y_range=(-1, 1),
        ),
        _case(
            "flat",
            "plateau at the start",
            one(lambda F, x, y: F.minimum(0.0, (y - x - 2) ** 2 - 1)),
            near(0.0),
        ),
    ]


def _kinked() -> list[Case]:
    return [
        _case("kinked", "distance", one(lambda F, x, y: F.abs(y - x))),
        _case(
            "kinked",
            "two parabolas",
            one(lambda F, x, y: F.maximum((y - 1) ** 2, (y + 1) ** 2) + 0.1 * x * y),
            near(0.0, 1.0, 1.0),
        ),
        _case("kinked", "soft threshold", one(lambda F, x, y: 0.5 * (y - 2 * x) ** 2 + F.abs(y))),
        _case(
            "kinked",
            "pinball",
            one(lambda F, x, y: F.maximum(0.2 * (y - x), 0.8 * (x - y)) + 0.05 * y**2),
        ),
        _case("kinked", "two distances", one(lambda F, x, y: F.abs(y - x) + 0.6 * F.abs(y + 1))),
        _case(
            "kinked",
            "ell one in the plane",
            two(lambda F, x, u, v: F.abs(u - x) + F.abs(v + x)),
            y0=(0.4, 0.1),
        ),
        _case(
            "kinked",
            "largest of three",
            one(lambda F, x, y: F.maximum(F.maximum(-y, y - x), 0.5 * y)),
        ),
        _case("kinked", "with a box", one(lambda F, x, y: F.abs(y - 2 * x)), box=(-1, 1)),
    ]


def _unbounded() -> list[Case]:
    none: dict[str, Any] = {"exists": False}
    return [
        _case("unbounded", "hill", one(lambda F, x, y: -(y**2) + x * y), **none),
        _case("unbounded", "logarithm", one(lambda F, x, y: -F.log(1 + (y - x) ** 2)), **none),
        _case("unbounded", "line", one(lambda F, x, y: y - x), **none),
        _case("unbounded", "cubic", one(lambda F, x, y: (y - x) ** 3), **none),
        _case(
            "unbounded",
            "ray of a linear program",
            two(lambda F, x, u, v: -u - v),
            y0=(0.4, 0.1),
            box=(0, INF),
            **none,
        ),
        _case(
            "unbounded",
            "saddle",
            two(lambda F, x, u, v: (u - x) ** 2 - v**2),
            y0=(0.4, 0.0),
            **none,
        ),
        _case("unbounded", "root", one(lambda F, x, y: -F.sqrt(1 + y)), box=(0, INF), **none),
    ]


def _empty() -> list[Case]:
    none: dict[str, Any] = {"exists": False}
    follows = one(lambda F, x, y: (y - x) ** 2)
    return [
        _case(
            "empty",
            "two rows",
            follows,
            rows=(lambda F, x, y: [1 + x[0] ** 2 - y[0], y[0]],),
            **none,
        ),
        _case(
            "empty",
            "below a parabola",
            follows,
            rows=(lambda F, x, y: [y[0] ** 2 + 1 - 0 * x[0]],),
            **none,
        ),
        _case(
            "empty",
            "beyond the box",
            follows,
            box=(0, 1),
            rows=(lambda F, x, y: [3 - y[0] - 0 * x[0]],),
            **none,
        ),
        _case(
            "empty",
            "outside a disc",
            two(lambda F, x, u, v: u + v),
            y0=(0.4, 0.1),
            box=(-0.5, 0.5),
            rows=(lambda F, x, y: [2 - y[0] ** 2 - y[1] ** 2],),
            **none,
        ),
        _case(
            "empty",
            "for some x",
            follows,
            near(1.0, -2.0),
            rows=(lambda F, x, y: [x[0] - y[0], y[0] - 2 * x[0]],),
        ),
    ]


def _not_attained() -> list[Case]:
    none: dict[str, Any] = {"exists": False}
    return [
        _case("not attained", "exponential", one(lambda F, x, y: (1 + x**2) * F.exp(-y)), **none),
        _case(
            "not attained", "bell upside down", one(lambda F, x, y: 1 / (1 + (y - x) ** 2)), **none
        ),
        _case("not attained", "softplus", one(lambda F, x, y: F.log(1 + F.exp(y - x))), **none),
        _case("not attained", "arctangent", one(lambda F, x, y: -F.arctan(y - x)), **none),
        _case(
            "not attained",
            "hyperbola",
            two(lambda F, x, u, v: u + 0 * v),
            y0=(1.4, 1.1),
            box=(0, INF),
            rows=(lambda F, x, y: [1 - y[0] * y[1]],),
            **none,
        ),
        _case(
            "not attained",
            "exponential in the plane",
            two(lambda F, x, u, v: F.exp(-u) + (v - x) ** 2),
            y0=(0.4, 0.1),
            **none,
        ),
        _case(
            "not attained",
            "separation",
            two(lambda F, x, u, v: F.log(1 + F.exp(-u - v)) + F.log(1 + F.exp(v - u))),
            y0=(0.4, 0.1),
            **none,
        ),
    ]


def _tied() -> list[Case]:
    return [
        _case("tied", "two wells", one(lambda F, x, y: (y**2 - 1) ** 2)),
        _case("tied", "two ends", one(lambda F, x, y: -(y**2)), box=(-1, 1)),
        _case(
            "tied",
            "waves",
            one(lambda F, x, y: F.cos(6.283185307179586 * (y - x))),
            near(2.2),
            box=(-3, 3),
        ),
        _case("tied", "turns with x", one(lambda F, x, y: x * y), near(0.0, 0.5), box=(-1, 1)),
        _case(
            "tied",
            "circle",
            two(lambda F, x, u, v: (u**2 + v**2 - 1) ** 2),
            y0=(0.4, 0.1),
            y_range=(-2, 2),
        ),
        _case(
            "tied",
            "corners",
            two(lambda F, x, u, v: -(u**2) - v**2),
            near(0.8),
            y0=(0.4, 0.1),
            box=(-1, 1),
            y_range=(-1, 1),
        ),
        _case(
            "tied",
            "waves and a bowl",
            one(lambda F, x, y: F.cos(5 * y) + 0.01 * (y - x) ** 2),
            near(2.0),
        ),
    ]


def _degenerate() -> list[Case]:
    follows = one(lambda F, x, y: (y - x) ** 2)
    return [
        _case("degenerate", "quartic", one(lambda F, x, y: (y - x) ** 4)),
        _case("degenerate", "sixth power", one(lambda F, x, y: (y - x) ** 6)),
        _case(
            "degenerate", "quartic line", two(lambda F, x, u, v: (u + v - x) ** 4), y0=(0.4, 0.1)
        ),
        _case(
            "degenerate", "a single point", follows, rows=(lambda F, x, y: [y[0] ** 2 + 0 * x[0]],)
        ),
        _case(
            "degenerate",
            "one row thrice",
            follows,
            rows=(lambda F, x, y: [y[0] - x[0] / 2, 2 * y[0] - x[0], 3 * y[0] - 1.5 * x[0]],),
        ),
        _case(
            "degenerate",
            "cubic row",
            one(lambda F, x, y: y),
            near(0.0, 1.0),
            rows=(lambda F, x, y: [x[0] - y[0] ** 3],),
        ),
        _case(
            "degenerate",
            "inflection in a box",
            one(lambda F, x, y: (y - x) ** 3),
            near(0.0),
            box=(-1, 1),
        ),
    ]


def _scaled() -> list[Case]:
    def bowl(s):
        return one(lambda F, x, y: s * (y - x) ** 2)

    def cubic(s):
        return one(lambda F, x, y: s * (y**3 / 3 - x * y))

    powers = (1e-8, 1e-4, 1e4, 1e8)
    return [
        *(_case("scaled", f"bowl times {s:g}", bowl(s), scale=s) for s in powers),
        *(
            _case("scaled", f"cubic times {s:g}", cubic(s), box=(-1, 1), scale=s)
            for s in powers[::3]
        ),
        _case(
            "scaled",
            "bowl times 1e-8 above 1",
            one(lambda F, x, y: 1 + 1e-8 * (y - x) ** 2),
            scale=1e-8,
        ),
    ]


def _half_open() -> list[Case]:
    return [
        _case("half-open", "y at least 0", one(lambda F, x, y: (y + 1 - x) ** 2), box=(0, INF)),
        _case("half-open", "y at most 1/2", one(lambda F, x, y: (y - x) ** 2), box=(-INF, 0.5)),
        _case(
            "half-open",
            "y at least x",
            one(lambda F, x, y: y**2 + y),
            rows=(lambda F, x, y: [x[0] - y[0]],),
        ),
        _case(
            "half-open",
            "linear program",
            two(lambda F, x, u, v: u + 2 * v),
            y0=(0.4, 0.1),
            box=(0, INF),
            rows=(lambda F, x, y: [1 + x[0] - y[0] - y[1]],),
        ),
    ]


CASES = [
    *_flat(),
    *_kinked(),
    *_unbounded(),
    *_empty(),
    *_not_attained(),
    *_tied(),
    *_degenerate(),
    *_scaled(),
    *_half_open(),
]
