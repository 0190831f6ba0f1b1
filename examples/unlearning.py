"""Forget one author of twenty: BLUR against weighted sums of the same losses.

A small network knows the answers, four tokens each, to six questions about each of twenty authors;
a quarter of the tokens is the same for all authors. Author 0 is to be forgotten by NPO in 200 steps
of AdamW, with twelve of the other answers in a batch. It prints, for each way, the mean probability
of the tokens to forget and to retain. Expect a front: whatever is forgotten costs some of the rest,
NPO with BLUR and NPO in a weighted sum lie on the same front, and gradient ascent lies below it.

    python examples/unlearning.py [--save FILE.png]
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel as bl
from bilevel.apps.llm.unlearning import losses
from bilevel.apps.llm.unlearning.blur import BLUR, WeightedSum
from bilevel.report import figures
from bilevel.updates import FromOptax

AUTHORS, QUESTIONS, TOKENS, VOCABULARY = 20, 6, 4, 30


def world(seed: int = 0):
    """Inputs and answers, those of author 0 first."""
    draw = np.random.default_rng(seed)
    shared = draw.integers(0, VOCABULARY, (QUESTIONS, TOKENS))
    own = draw.integers(0, VOCABULARY, (AUTHORS, QUESTIONS, TOKENS))
    answers = np.where(draw.random(own.shape) < 0.25, shared, own).reshape(-1, TOKENS)
    author, question = np.divmod(np.arange(AUTHORS * QUESTIONS), QUESTIONS)
    inputs = np.concatenate([np.eye(AUTHORS)[author], np.eye(QUESTIONS)[question]], axis=1)
    rows = jnp.asarray(inputs, jnp.float32), jnp.asarray(answers, jnp.int32)
    return tuple(leaf[:QUESTIONS] for leaf in rows), tuple(leaf[QUESTIONS:] for leaf in rows)


def start(key):
    sizes = [AUTHORS + QUESTIONS, 128, 128, TOKENS * VOCABULARY]
    draw = jax.nn.initializers.he_normal()
    layers = zip(jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True)
    return [
        {"w": draw(k, (a, b), jnp.float32), "b": jnp.zeros(b, jnp.float32)} for k, a, b in layers
    ]


def logprobs(x, rows):
    h, answers = rows
    for i, layer in enumerate(x):
        h = (jax.nn.relu(h) if i else h) @ layer["w"] + layer["b"][None]
    scores = jax.nn.log_softmax(h.reshape(-1, TOKENS, VOCABULARY))
    return jnp.take_along_axis(scores, answers[..., None], axis=2)[..., 0]


def retain(x, batch):
    return -logprobs(x, batch).mean()


def moved(problem, x, rows, steps, size, rate):
    """AdamW on a problem of one variable."""
    found = bl.solve(
        problem,
        bl.methods.TTSA(FromOptax(optax.adamw, rate, weight_decay=0.01)),
        x,
        jnp.zeros(()),
        data=bl.Data(rows, batch_size=size),
        steps=steps,
        log_every=steps,
        certify=False,
        progress=False,
    )
    return found.x


def ways(forget_rows, x0):
    """The forget losses, and how each is combined with the retain loss."""
    before = logprobs(x0, forget_rows).sum(axis=1)

    def npo(x, batch):
        return losses.npo(logprobs(x, forget_rows).sum(axis=1) - before, 0.1)

    def ascent(x, batch):
        return logprobs(x, forget_rows).mean()

    sums = {f"retain weight {w:g}": (npo, WeightedSum(1 / w)) for w in (0.3, 1, 3, 10, 30)}
    blur = {f"gamma {g:g}": (npo, BLUR(g)) for g in (3.0, 1.0, 0.3, 0.1, 0.03)}
    return {
        "NPO, weighted sum": sums,
        "NPO, BLUR": blur,
        "ascent, weighted sum": {"retain weight 1": (ascent, WeightedSum(1.0))},
        "ascent, BLUR": {"gamma 1": (ascent, BLUR(1.0))},
    }


def fronts(seed: int = 0):
    """(forget, retain) of every way, and of the networks before and never told."""
    forget_rows, retain_rows = world(seed)
    every = tuple(map(lambda *both: jnp.concatenate(both), forget_rows, retain_rows))
    learn = WeightedSum(1e-9).problem(lambda x, batch: jnp.zeros((), jnp.float32), retain)

    def judged(x):
        return tuple(
            float(jnp.exp(logprobs(x, rows)).mean()) for rows in (forget_rows, retain_rows)
        )

    x0 = moved(learn, start(jax.random.key(seed)), every, 1500, None, 3e-3)
    never = moved(learn, start(jax.random.key(seed)), retain_rows, 1500, None, 3e-3)
    found = {"before": {"": judged(x0)}, "never told": {"": judged(never)}}
    for name, some in ways(forget_rows, x0).items():
        found[name] = {
            setting: judged(moved(how.problem(loss, retain), x0, retain_rows, 200, 12, 3e-4))
            for setting, (loss, how) in some.items()
        }
    return found


def picture(found, file):
    with figures.style():
        figure = figures.new_figure(6.4, 4.2)
        figure.patch.set_alpha(1)
        axes = figure.subplots()
        for i, (name, points) in enumerate(found.items()):
            across, up = zip(*sorted(points.values()), strict=True)
            marker, color = figures.MARKERS[i], figures.series_color(i)
            axes.plot(across, up, marker=marker, color=color, label=name, markersize=7)
        axes.set(xlabel="probability of what is to be forgotten (less is better)",
                 ylabel="probability of the rest (more is better)")  # fmt: skip
        axes.legend(loc="center right")
        figure.savefig(file, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--save")
    asked = parser.parse_args()
    found = fronts()
    for name, points in found.items():
        for setting, (forgotten, kept) in points.items():
            print(f"{name:22}{setting:20}forget {forgotten:.3f}   retain {kept:.3f}")
    if asked.save:
        picture(found, asked.save)
