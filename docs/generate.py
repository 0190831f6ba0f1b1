"""Write the generated parts of the README and the docs: `python -m docs.generate`.

Tables of methods come from the classes. The demo's table and figure come from running it, which
takes half a minute; `--tables` leaves those as they are.
"""

import re
import sys
from pathlib import Path

import numpy as np

from bilevel import report
from bilevel.apps import cleaning

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FIGURE = ROOT / "docs" / "figures" / "demo.png"


def methods_table() -> str:
    """The methods as a Markdown table."""
    lines = [
        "| method | what it does | handles | oracle calls a step | memory | paper |",
        "|---|---|---|---|---|---|",
    ]
    for row in report.method_rows():
        paper = f"[{row.paper}](https://arxiv.org/abs/{row.arxiv})"
        cells = (f"`{row.name}`", row.summary, row.handles, row.price, row.memory, paper)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", report.LEGEND])


def demo() -> str:
    """Run the demo's methods; save the figure and return the table."""
    task = cleaning.digits()
    references = cleaning.references(task)
    steps = cleaning.equal_cost(4000)
    runs = {
        name: cleaning.clean(task, method, steps=steps[name])
        for name, method in cleaning.settings().items()
    }
    draw(task, runs, references)
    lines = ["| | test accuracy | F1 of wrong labels found |", "|---|---|---|"]
    for name, value in references.items():
        lines.append(f"| {name} (reference) | {value:.3f} | |")
    for name, run in runs.items():
        f1 = cleaning.detection(run.x, task.wrong).f1
        lines.append(f"| {name} | {run.history['test accuracy'][-1]:.3f} | {f1:.2f} |")
    return "\n".join(lines)


def draw(task, runs, references) -> None:
    """Test accuracy against oracle calls, and the learned weights."""
    figures = report.figures
    with figures.style():
        figure = figures.new_figure(9.6, 3.4)
        figure.patch.set_alpha(1)
        curves, weights = figure.subplots(1, 2, width_ratios=(3, 2))
        for i, (name, run) in enumerate(runs.items()):
            columns = run.history
            curves.plot(
                columns["gradients"][1:],
                columns["test accuracy"][1:],
                color=figures.series_color(i),
                label=name,
            )
        curves.set_title("Half of the training labels are wrong: test accuracy")
        curves.set_xlabel("gradient evaluations")
        curves.xaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
        curves.set_ylim(references["all data"] - 0.01, references["oracle"] + 0.012)
        figures.horizontals(curves, references, labelled=True)
        curves.legend(loc="center right")
        learned = np.asarray(cleaning.weights(runs["SOBA"].x))
        edges = np.linspace(0, 1, 26)
        weights.hist(
            learned[~task.wrong], edges, color=figures.QUIET, alpha=0.75, label="right label"
        )
        weights.hist(
            learned[task.wrong],
            edges,
            color=figures.series_color(1),
            alpha=0.75,
            label="wrong label",
        )
        weights.set_title("Weights that SOBA learned")
        weights.set_xlabel("weight of a training sample")
        weights.legend(loc="upper center")
        FIGURE.parent.mkdir(exist_ok=True)
        figure.savefig(FIGURE, dpi=160, metadata={"Software": None})


def filled(text: str, name: str, content: str) -> str:
    """The text with what stands between `<!-- name -->` and `<!-- /name -->` replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    new, found = re.subn(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"the README has {found} places for {name}; one is needed.")
    return new


def main() -> None:
    text = filled(README.read_text(), "methods", methods_table())
    if "--tables" not in sys.argv:
        text = filled(text, "demo", demo())
    README.write_text(text)


if __name__ == "__main__":
    main()
