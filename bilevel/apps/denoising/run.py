"""`bilevel denoise FOLDER`: learn on crops, judge on others, report, and denoise a folder."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from scipy.ndimage import gaussian_filter

from bilevel import report
from bilevel.apps.denoising import crops, figures
from bilevel.apps.denoising.crops import Pairs, Task
from bilevel.apps.denoising.learn import denoise, learn, pooled_psnr, psnr
from bilevel.apps.denoising.problem import (
    FieldsOfExperts,
    Pictures,
    Regularizer,
    TotalVariation,
)
from bilevel.apps.denoising.settings import Choice, Denoise
from bilevel.driver import Outcome, Result
from bilevel.files import Picture, read_pictures, write_picture
from bilevel.global_search import double_precision


class Learned(NamedTuple):
    """A regularizer, the run that found its weights, and the held-out pictures it denoised."""

    regularizer: Regularizer
    result: Result
    held_out: Pictures


def run(options: Denoise) -> None:
    """The command.

    Raises:
        ValueError, OSError, ImportError: in one sentence, before anything runs.
        KeyboardInterrupt: Ctrl-C was pressed; the report of what was learned until then is written.
    """
    out, console = report.check_writable(options.out), Console(soft_wrap=True, highlight=False)
    todo = [] if options.apply is None else read_pictures(options.apply)
    if todo:
        _check_folder(options)
    with double_precision():
        task = crops.read(options)
        console.print(f"{len(task.train.clean)} crops to learn from; on the others:")
        learned = learn_each(task, regularizers(options), options.steps)
        blurred = blur(task)
        versions = {"noisy": task.held_out.noisy, "Gaussian blur": blurred}
        versions |= {name: one.held_out for name, one in learned.items()}
        for name, pictures in versions.items():
            ending = f"; {learned[name].result.status}" if name in learned else ""
            ratio = pooled_psnr(task.held_out.clean, pictures)
            console.print(f"{name:18s} {ratio:.2f} dB{ending}")
        stopped = any(o.result.status.outcome is Outcome.INTERRUPTED for o in learned.values())
        lead = f"Regularizers learned by MAID on {len(task.train.clean)} crops of {options.folder}."
        partial = "This report is partial: the run was stopped from the keyboard. "
        title = "Denoising learned by bilevel optimization"
        report.write(out, title, sections(task, learned, versions), partial * stopped + lead)
        console.print(f"Report written to {out}")
        if stopped:
            raise KeyboardInterrupt
        if todo:
            name = max(learned, key=lambda n: pooled_psnr(task.held_out.clean, versions[n]))
            options.into.mkdir(exist_ok=True)
            for picture in todo:
                file = options.into / f"{picture.file.stem}.png"
                write_picture(file, apply(learned[name], picture))
            console.print(f"{len(todo)} pictures denoised by {name}, in {options.into}")


def regularizers(options: Denoise) -> dict[str, Regularizer]:
    """Those that the options ask for, by name."""
    every: dict[Choice, tuple[str, Regularizer]] = {
        Choice.TOTAL_VARIATION: ("total variation", TotalVariation()),
        Choice.FIELDS_OF_EXPERTS: ("fields of experts", FieldsOfExperts(options.filter)),
    }
    return dict(v for k, v in every.items() if options.regularizer in (k, Choice.BOTH))


def learn_each(
    task: Task, regularizers: Mapping[str, Regularizer], steps: int, **options: Any
) -> dict[str, Learned]:
    """Each regularizer in turn; Ctrl-C ends the run it meets and leaves out those to come."""
    learned = {}
    for name, regularizer in regularizers.items():
        result = learn(*task.train, regularizer, steps=steps, **options)
        held_out = denoise(result.x, task.held_out.noisy, regularizer)
        learned[name] = Learned(regularizer, result, held_out)
        if result.status.outcome is Outcome.INTERRUPTED:
            break
    return learned


def apply(learned: Learned, picture: Picture) -> np.ndarray:
    """A denoised picture; the channels of a coloured one are denoised each on its own."""
    channels = jnp.moveaxis(jnp.asarray(picture.pixels), -1, 0)
    clean = denoise(learned.result.x, channels, learned.regularizer)
    return np.moveaxis(np.asarray(clean), 0, -1)


def blur(task: Task) -> Pictures:
    """The held-out pictures under the Gaussian blur that is best on the training pictures."""

    def at(width: float, pairs: Pairs) -> Pictures:
        return jnp.asarray(gaussian_filter(np.asarray(pairs.noisy), (0, width, width)))

    widths = np.linspace(0, 3, 31)[1:]
    best = max(widths, key=lambda w: pooled_psnr(task.train.clean, at(w, task.train)))
    return at(best, task.held_out)


def _check_folder(options: Denoise) -> None:
    into = options.into
    if into.exists() and not into.is_dir():
        raise ValueError(f"--into {into} is a file; a folder is needed.")
    if not into.exists() and not into.parent.is_dir():
        raise ValueError(f"--into {into} cannot be made: there is no folder {into.parent}.")
    if options.apply and into.resolve() == options.apply.resolve():
        raise ValueError("--into is the folder of --apply; choose another, to keep those pictures.")


def sections(
    task: Task, learned: Mapping[str, Learned], versions: Mapping[str, Pictures]
) -> list[report.Section]:
    """The report: numbers, pictures, filters, and how MAID went."""
    clean = task.held_out.clean
    pooled = {name: pooled_psnr(clean, pictures) for name, pictures in versions.items()}
    ratios = {name: psnr(clean, pictures) for name, pictures in versions.items()}
    others = [name for name in versions if name != "noisy"]
    numbers = [(f"{pooled['noisy']:.1f} dB", "noisy")]
    numbers += [(f"{pooled[name] - pooled['noisy']:+.1f} dB", name) for name in others]
    rows = [
        (
            name,
            pooled[name],
            float(ratios[name].mean()),
            float((ratios[name] - ratios["noisy"]).min()),
        )
        for name in versions
    ]
    columns = ("", "all pixels [dB]", "mean of the crops [dB]", "smallest gain of a crop [dB]")
    reference = ("noisy", "Gaussian blur")
    table = report.Table(columns, rows, dict.fromkeys(columns[1:], ".2f"), aside=reference)
    about = report.Text(
        f"Peak signal-to-noise ratio on {len(clean)} crops that no run has seen. Learning lowers "
        "the squared error of all pixels; the mean of the crops' ratios counts smooth crops more. "
        "Crops come from the same pictures as those to learn from, without a common pixel: expect "
        "less on pictures of another kind. The blur has the width that is best on the training "
        "crops."
    )
    found = [report.Section("In short", [report.Numbers(numbers), table, about])]
    shown = figures.before_and_after(versions, clean)
    found.append(report.Section("Before and after", [report.Figure(shown, "Held-out crops.")]))
    for one in learned.values():
        if isinstance(one.regularizer, FieldsOfExperts):
            kernels = np.asarray(one.regularizer.filters(one.result.x))
            weights = np.exp(np.asarray(one.result.x["weights"]))
            figure = figures.filters(kernels, weights)
            caption = "Learned filters, each under its weight."
            found.append(report.Section("Filters", [report.Figure(figure, caption)]))
    runs = {name: one.result for name, one in learned.items()}
    bound = report.Text(
        "The bound is on the error of the hypergradient, in the Euclidean norm: MAID refines both "
        "lower solves until it is below half of the gradient, so that every step goes downhill."
    )
    curves = report.of(runs, columns=["upper", "hypergrad_norm", "bound"])
    return [*found, report.Section("Certainty", [bound]), *curves]
