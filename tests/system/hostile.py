"""Hostile inputs, by a generator that is kept: `python -m tests.system.hostile [how many]`.

Each must be refused in one sentence (a `TypeError` or `ValueError` of at most 700 characters)
within 5 seconds. Prints those that are accepted silently, end in another error, or take longer.
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel import methods

SECONDS = 5.0
NUMBERS = (-1, -1e-9, float("nan"), float("inf"), -float("inf"), 10**400, -(10**400))
THINGS = ("0.1", "no", b"\x00", None, [], {}, (), object(), print, dict, 1j, np.array(["a"]))
WRITABLE = {  # settings of methods that take a number
    "SOBA": ("x_update", "y_update", "v_update"),
    "F2SA": ("x_update", "penalty"),
    "StocBiO": ("x_update", "y_update"),
    "BOME": ("decrease", "z_update"),
    "MAID": ("eps", "delta", "shrink"),
}


class Case(NamedTuple):
    name: str
    wrong: Callable[[], Any]


def square(x, y, batch):
    return jnp.sum((x - y) ** 2) + jnp.sum(x**2)


def solve(**wrong):
    given = {"x0": jnp.ones(2), "y0": jnp.zeros(2), "method": methods.SOBA(), "steps": 10}
    return bl.solve(bl.Problem(square, square), **{**given, **wrong}, progress=False)


def settings(draw: random.Random) -> Case:
    name = draw.choice(list(WRITABLE))
    field, value = draw.choice(WRITABLE[name]), draw.choice(NUMBERS + THINGS)
    return Case(f"{name}({field}={value!r:.40})", lambda: getattr(methods, name)(**{field: value}))


def options(draw: random.Random) -> Case:
    field = draw.choice(["steps", "log_every", "tol", "key", "data", "callbacks", "metrics", "x0"])
    bad = {"tol": (*NUMBERS, "0.1", 1j), "x0": (float("nan"), 10**400, "a", 1, True, [], {}, print)}
    bad["steps"] = bad["log_every"] = (*NUMBERS, "1", 0, 2.5, None, True, 10**12)
    bad["key"] = (0, "a", 1.5, [], jnp.ones(2), jax.random.split(jax.random.key(0), 2))
    bad["data"] = (0, "a", jnp.ones(3), [], print)
    bad["callbacks"] = (print, 3, [3], [dict], [lambda: 0], [lambda step, row: 0])
    bad["metrics"] = ([], "a", {"step": max}, {1: abs}, {"a": 3}, {"last": lambda x, y: 0.0})
    value = draw.choice(bad[field])
    return Case(f"solve({field}={value!r:.40})", lambda: solve(**{field: value}))


def constraint_sets(draw: random.Random) -> Case:
    value = draw.choice((float("nan"), 10**400, "a", 1j, print, object()))
    make = draw.choice(
        [
            lambda: bl.sets.Box(value, 1.0),
            lambda: bl.sets.Ball(value),
            lambda: bl.sets.Simplex(value),
            lambda: bl.sets.Affine([[value, 1.0]], [1.0]),
            lambda: bl.sets.Coupled(3 if callable(value) else value),
        ]
    )
    return Case(f"a set of {value!r:.40}", make)


def functions(draw: random.Random) -> Case:
    value = draw.choice((None, "a", True, 1j, [], {}, (1.0, 2.0), jnp.ones(2), jnp.int32(3)))
    level = draw.choice(("upper", "lower", "constraint"))
    method = draw.choice((methods.SOBA(), None))

    def wrong():
        given = {"upper": square, "lower": square}
        if level == "constraint":
            bad = None if value is None or isinstance(value, tuple | list | dict) else value
            bad = True if hasattr(value, "dtype") else bad
            given["lower_set"] = bl.sets.Coupled(lambda x, y: bad)
            chosen = None if method is None else methods.BLOCC()
        else:
            given[level], chosen = (lambda x, y, b: value), method
        return bl.solve(bl.Problem(**given), chosen, jnp.ones(2), jnp.zeros(2), progress=False)

    return Case(f"{level} returns {value!r:.40}", wrong)


def data(draw: random.Random) -> Case:
    value = draw.choice(
        (
            np.array([[np.nan]]), np.full((3, 1), 2**40), np.full((3, 1), 1e300), np.array(["a"]),
            np.zeros((0, 2)), 3.0, "text", [object()], [10**400],
            {"a": np.ones(3), "b": np.ones(4)},
        )
    )  # fmt: skip
    return Case(f"Data({value!r:.40})", lambda: bl.Data(value, value))


def checkpoints(draw: random.Random) -> Case:
    folder = draw.choice(("", " ", "gs://b/a", "s3://b", 3, None, [], "a\0b", "/proc/none"))
    keep = draw.choice((0, -1, 1.5, "2", None, True, 10**400))
    if draw.random() < 0.5:
        return Case(
            f"Checkpoint(keep={keep!r:.30})",
            lambda: None if keep == 10**400 and _refuse() else solve(checkpoint=_kept(keep)),
        )
    folder = "" if folder is None else folder
    return Case(f"checkpoint={folder!r}", lambda: solve(checkpoint=folder))


def _refuse():
    raise ValueError("a keep of 400 digits keeps every state, which is allowed")


def _kept(keep):
    return bl.Checkpoint(tempfile.mkdtemp(), keep=keep)


def lines(draw: random.Random) -> Case:
    from bilevel.apps.llm.data import jsonl

    content = draw.choice(
        (
            "[" * 100_000, '{"a":' * 50_000, "9" * 5000, '{"prompt": 3}', "null", "\x00", "{",
            '{"prompt": "a", "response": null}', json.dumps({"prompt": [1], "response": {}}),
        )
    )  # fmt: skip

    def wrong():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            path.write_text(content)
            return jsonl.demonstrations(path)

    return Case(f"JSONL {content[:30]!r}", wrong)


def configs(draw: random.Random) -> Case:
    from bilevel.apps.llm.hub import config_json

    good = {
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "vocab_size": 32, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "max_position_embeddings": 64, "tie_word_embeddings": False,
    }  # fmt: skip
    field = draw.choice(sorted(good))
    value = draw.choice((*NUMBERS, 0, "no", [], {}, 10**9))
    if field in ("rms_norm_eps", "rope_theta") and value == 10**9:
        value = 0  # large ones are allowed
    if field == "tie_word_embeddings" and value is False:
        value = 0
    if isinstance(value, float) and not np.isfinite(value):
        value = "nan"
    return Case(f"config {field}={value!r:.30}", lambda: config_json.read({**good, field: value}))


KINDS = (settings, options, constraint_sets, functions, data, checkpoints, lines, configs)


def cases(n: int, seed: int = 0) -> list[Case]:
    draw = random.Random(seed)
    return [KINDS[i % len(KINDS)](draw) for i in range(n)]


def verdict(case: Case) -> str | None:
    """What is wrong with how a case was refused; `None` if nothing."""
    begin = time.monotonic()
    try:
        case.wrong()
    except (TypeError, ValueError) as error:
        told, seconds = str(error), time.monotonic() - begin
        if not 15 <= len(told) <= 700:
            return f"{case.name}: unclear: {told[:200]!r}"
        return f"{case.name}: {seconds:.1f} s to refuse" if seconds > SECONDS else None
    except Exception as error:
        return f"{case.name}: a raw {type(error).__name__}: {str(error)[:200]}"
    return f"{case.name}: accepted"


def main() -> None:
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    wrong = sorted({told for case in cases(asked) if (told := verdict(case))})
    print(f"{len(wrong)} of {asked} inputs are not refused well", *wrong, sep="\n  ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
