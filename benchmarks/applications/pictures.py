"""Networks and pictures: pruned, rounded, denoised, distilled, searched for, and forgotten."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.applications.row import Row, timed


def pruning() -> Iterator[Row]:
    """1 % of a network for digits stays; magnitude at once, and a fifth at a time."""
    from bilevel.apps import pruning
    from examples.pruning import DENSITY, accuracy, digits, loss, network

    train, test = digits(0)
    everything, few = pruning.Unstructured(1.0), pruning.Unstructured(DENSITY)
    start = pruning.one_shot(loss, network(jax.random.key(0)), train, everything, steps=500).params
    ours, seconds = timed(pruning.prune, loss, start, train, few, steps=1000)
    once, once_seconds = timed(pruning.one_shot, loss, start, train, few, steps=1000)
    again, again_seconds = timed(pruning.iterative, loss, start, train, DENSITY, steps=1000)
    found = accuracy(ours.params, test)
    for rival, one, spent in (
        ("magnitude at once", once, once_seconds),
        ("iterative magnitude", again, again_seconds),
    ):
        told = f"{rival}, {one.steps:,} steps against {ours.steps:,}"
        theirs = accuracy(one.params, test)
        yield Row("1 % of a network, digits", "test accuracy", told, found, theirs, seconds, spent)


def denoising() -> Iterator[Row]:
    """Crops of photographs with noise of deviation 0.1: 12 to learn from, 32 to judge."""
    from skimage.restoration import denoise_tv_chambolle

    from bilevel.apps.denoising.learn import denoise, learn, pooled_psnr
    from bilevel.apps.denoising.problem import TotalVariation
    from examples.denoising import crops

    clean = crops(44)
    noisy = clean + 0.1 * np.random.default_rng(1).normal(size=clean.shape)
    variation = TotalVariation()

    def learned():
        parts = jnp.asarray(clean[:12]), jnp.asarray(noisy[:12])
        x = learn(*parts, variation, steps=12, progress=False).x
        return denoise(x, jnp.asarray(noisy[12:]), variation)

    def smoothed(weight: float, pictures):
        return np.stack([denoise_tv_chambolle(one, weight) for one in pictures])

    def searched():
        """The best of 20 weights on the crops to learn from."""
        weights = np.geomspace(0.01, 1, 20)
        ratios = [pooled_psnr(clean[:12], smoothed(one, noisy[:12])) for one in weights]
        return smoothed(weights[np.argmax(ratios)], noisy[12:])

    (ours, seconds), (theirs, rival) = timed(learned), timed(searched)
    ratios = (pooled_psnr(clean[12:], found) for found in (ours, theirs))
    told = "total variation of scikit-image, 20 weights"
    yield Row("noise in photographs", "PSNR [dB]", told, *ratios, seconds, rival)


def distillation() -> Iterator[Row]:
    """Fifty images that stand for 1297 digits."""
    from bilevel.apps import distillation as app
    from examples.distillation import centres, digits, few

    train, test = digits()
    ours, seconds = timed(app.distil, *train, few(train), steps=600)
    theirs, rival = timed(centres, train)
    found = (float(app.accuracy(one, *test).mean()) for one in (ours.learned, theirs))
    told = "centres of k-means"
    yield Row("50 images for 1297 digits", "test accuracy", told, *found, seconds, rival)


def architecture() -> Iterator[Row]:
    """A cell of three edges, of five operations each."""
    from bilevel.apps import architecture as app
    from examples.architecture import task

    cell, _, y0, (train, valid, test) = task(0)
    settings = {"decay": 1e-3, "y_step": 0.01}
    how = app.method(y_step=0.01)
    ours, seconds = timed(app.search, cell, y0, train, valid, decay=1e-3, how=how)
    trials = app.equal_trials(cell)
    drawn, rival = timed(app.random_search, cell, y0, train, valid, trials=trials, **settings)
    cells = ours.architecture, drawn
    losses = (float(app.retrain(cell, one, y0, train, **settings)[1](test)) for one in cells)
    told = f"random search, {trials} cells"
    yield Row("a cell of three edges", "test loss", told, *losses, seconds, rival)


def quantization() -> Iterator[Row]:
    """Three bits a weight for a network for digits, from 64 images."""
    from bilevel.apps.few_steps import nets
    from bilevel.apps.few_steps import quantization as app
    from examples.few_steps import digits

    inputs, labels = digits()
    net = nets.start((64, 32, 10), key=jax.random.key(0))
    net = nets.fit(net, inputs[:1000], labels[:1000], steps=400)
    ours, seconds = timed(app.calibrate, net, inputs[:64], bits=3, key=jax.random.key(0))
    theirs, rival = timed(app.calibrate_raw, net, inputs[:64], bits=3)
    apart = (float(app.distance(net, y, inputs[1000:], 3)) for y in (ours, theirs))
    told = "calibrated on the images as they are"
    yield Row("3 bits a weight", "nats from the full network", told, *apart, seconds, rival)


def forget_set() -> Iterator[Row]:
    """The 200 of 1000 digits that unlearning does not remove, since a copy of them stays."""
    from bilevel.apps import forget_set as app
    from bilevel.apps.forget_set.digits import digits, train

    samples = digits(n=1000, copies=200)
    model, losses = train(samples), samples.losses()
    options = {"rest": samples.rest(), "step_size": 3e-2}
    ours, seconds = timed(app.select, losses, samples.forgetting(), model, 1000, 200, **options)
    theirs, rival = timed(lambda: np.argsort(np.asarray(losses(model)))[:200])
    shares = (float(samples.copied[np.asarray(rows)].mean()) for rows in (ours.rows, theirs))
    told = "those with the smallest loss"
    yield Row("worst forget set, digits", "share with a copy", told, *shares, seconds, rival)


PARTS = {
    "pruning": pruning, "denoising": denoising, "distillation": distillation,
    "architecture": architecture, "quantization": quantization, "forget_set": forget_set,
}  # fmt: skip
