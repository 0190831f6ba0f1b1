"""Write the generated parts of the README and the docs: `python -m docs.generate`.

Tables of methods come from the classes. The demo's table and figure come from running it, which
takes half a minute; `--tables` leaves those as they are.
"""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import (
    align_demo,
    alignment,
    applications,
    billion,
    counterexamples,
    drifting,
    inverse_rl,
    llm_steps,
    mixing,
    mixing_smol,
    mixing_steps,
    problems,
    rates,
    tolls,
)
from benchmarks import cleaning as finders
from benchmarks import sklearn_tables as estimators
from benchmarks.gold_reward import show as gold_reward
from benchmarks.universal import runs as universal
from benchmarks.universal import show as universal_table
from benchmarks.unlearning import show as unlearning
from bilevel import options, report
from bilevel.apps import cleaning
from bilevel.apps.llm.mixing.settings import Mixing
from bilevel.apps.llm.run.settings import Align
from bilevel.report import figures
from docs import choosing, textbook
from docs.layers import layers_table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FIGURE = ROOT / "docs" / "figures" / "demo.png"
GENERATED = "<!-- Written by `python -m docs.generate` from the classes and the kept results. -->"
READING = (
    f"`agrees`: the slopes differ by at most {rates.AGREES}. A theory bounds the worst case; "
    "`faster` says that this problem is kinder than that. The hyper-objective is a strongly convex "
    "quadratic seen through noise at both levels; for the convex regime of TTSA it is a separable "
    "logistic loss, which has no minimiser. A mean over the run holds the descent from the start "
    "as well as the noise that is left; with the steps of the theory both fall at the rate shown, "
    "and here the first is the larger part."
)
RATE_LEGEND = (
    "Rate: samples (or gradients, without noise) until the mean of ‖∇l‖² is ε, for a nonconvex "
    "hyper-objective l."
)


def methods_table() -> str:
    """The methods as a Markdown table: what a reader chooses by."""
    lines = [
        "| method | what it does | oracle calls a step | rate | paper |",
        "|---|---|---|---|---|",
    ]
    for row in report.method_rows():
        summary = row.summary if row.status == "stable" else f"{row.summary} *Experimental.*"
        cells = (f"`{row.name}`", summary, row.price, row.rate or "–", _paper(row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", report.LEGEND, RATE_LEGEND, report.EXPERIMENTAL])


def methods_page() -> str:
    """Everything the classes say, a section a method."""
    parts = [
        "# The methods",
        "",
        GENERATED,
        "",
        methods_table(),
    ]
    for row in report.method_rows():
        parts += [
            "",
            f"## {row.name}",
            "",
            row.summary,
            "",
            _as_markdown(row.about),
            "",
            f"- Handles: {row.handles}",
            f"- Oracle calls a step: {row.price}",
            f"- Memory: {row.memory}",
            *([f"- Rate: {row.rate}"] if row.rate else []),
            *([f"- Status: {row.status}"] if row.status != "stable" else []),
            f"- Paper: {row.citation[:-1]}{_arxiv(row)}",
        ]
    return "\n".join(parts) + "\n"


def rates_page() -> str:
    """The measured rates beside the theory's, from the kept results."""
    lines = [
        "# Measured rates",
        "",
        GENERATED,
        "",
        "`python -m benchmarks.rates`: slope of the measure against samples, "
        f"{rates.SEEDS} seeds, each method with the steps of its own theory (`Method.theory`), "
        "anew for each horizon.",
        "",
        "![Measure against samples](figures/rates.png)",
        "",
        "| method | measure | theory | measured | decades | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in rates.kept():
        measured = f"{row.slope:.2f} ± {row.error:.2f}"
        verdict = f"{row.verdict}: {row.note}" if row.note else row.verdict
        theory, decades = f"{row.theory:.2f}", f"{row.decades:.1f}"
        cells = (row.name, row.measure, theory, measured, decades, verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", READING, ""])


def problems_page() -> str:
    """All methods on two real problems, from the kept results."""
    parts = [
        "# All methods on two real problems",
        "",
        GENERATED,
        "",
        "`python -m benchmarks.problems`: late flights (logistic regression with a penalty for "
        "each feature) and wrong labels (one weight for each handwritten digit), each method with "
        "the best steps of a race over multiples of its theory's.",
        "",
        "![Test loss against gradients and seconds](figures/problems.png)",
        "",
        "![Share of instances solved within a factor of the best](figures/profile.png)",
    ]
    for name, rows in problems.kept_lines().items():
        parts += ["", f"## {name.capitalize()}", "", "```", problems.table(rows), "```"]
    return "\n".join([*parts, "", problems.READING, ""])


def alignment_page() -> str:
    """Ways to align a language model whose answer is known, from the kept results."""
    return "\n".join(
        [
            "# Ways to align, measured",
            "",
            GENERATED,
            "",
            "`python -m benchmarks.alignment`: an enumerated language model of 8 prompts and 1296 "
            "responses, 300 demonstrations of the optimum, 300 pairs of the reference's responses.",
            "",
            alignment.table(alignment.kept()),
            "",
            alignment.READING,
            "",
            "## Feedback that drifts",
            "",
            "`python -m benchmarks.drifting`: ten answers whose utilities wander, one comparison a "
            "step, most of them of what the policy says itself.",
            "",
            drifting.table(drifting.kept()),
            "",
            drifting.READING,
            "",
        ]
    )


def counterexamples_page() -> str:
    """The page on the talk's two counterexamples: where each method ends, by the kept results."""
    parts = [
        "# Two counterexamples",
        "",
        GENERATED,
        "",
        counterexamples.ABOUT,
        "",
        "![Lower solutions, hyper-objectives, and where each method ended]"
        "(figures/counterexamples.png)",
        "",
        counterexamples.READING,
    ]
    rows = counterexamples.kept()
    for name, task in counterexamples.tasks().items():
        refused = ", ".join(f"`{method}`" for method in counterexamples.refusals(task))
        parts += [
            "",
            f"## {task.title}: `problems.{name}`",
            "",
            f"From x = {task.x0:g}; the best l is {task.best:g}. {counterexamples.told(rows, task)}"
            + (f" Refused by {refused}." if refused else ""),
            "",
            f"| {' | '.join(counterexamples.HEAD)} |",
            f"|{'---|' * len(counterexamples.HEAD)}",
        ]
        chosen = (row for row in rows if row.task == name)
        parts += [f"| {' | '.join(counterexamples.cells(row, task))} |" for row in chosen]
    return "\n".join([*parts, "", counterexamples.LESSON, ""])


def _paper(row: report.MethodRow) -> str:
    return f"[{row.paper}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else row.paper


def _arxiv(row: report.MethodRow) -> str:
    return f" ([arXiv](https://arxiv.org/abs/{row.arxiv}))" if row.arxiv else ""


def _as_markdown(docstring: str) -> str:
    """`Attributes:` and its entries as a list; the rest is Markdown already."""
    text, found, attributes = docstring.partition("\nAttributes:\n")
    if not found and docstring.startswith("Attributes:\n"):
        text, found, attributes = "", "Attributes:", docstring.removeprefix("Attributes:\n")
    if not found:
        return docstring
    entries = re.sub(r"^    (\w[\w, ]*):", r"- `\1`:", attributes, flags=re.MULTILINE)
    return f"{text.strip()}\n\nSettings:\n\n{inspect.cleandoc(entries)}".strip()


def demo() -> str:
    """Run what the demo runs; save the figure and return the table."""
    task = cleaning.digits(clean=100)
    references = cleaning.references(task)
    steps = cleaning.equal_cost(1000)
    runs = {
        name: cleaning.clean(task, method, steps=steps[name])
        for name, method in cleaning.settings().items()
    }
    draw(task, runs, references)
    lines = [
        "| clean samples | all labels as they are | clean samples only | cleaned | F1 | it pays |",
        "|---|---|---|---|---|---|",
    ]
    for clean in (30, 100, 300):
        o = cleaning.over_seeds([cleaning.digits(seed=seed, clean=clean) for seed in range(6)])
        means = map(cleaning.mean, (o.all_data, o.clean_only, o.accuracy, o.f1))
        cells = (str(clean), *map(str, means), "yes" if o.pays else "no")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(task, runs, references) -> None:
    """Test accuracy against oracle calls, and the learned weights."""
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


def quickstart_output(text: str) -> str:
    """What the README's code prints, in a process of its own, as a reader would run it."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return f"```\n{ran.stdout.strip()}\n```"


def filled(text: str, name: str, content: str) -> str:
    """The text, with the content put in place of what is between the two marks of that name.

    The marks are `<!-- name -->` and `<!-- /name -->`.
    """
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    new, found = re.subn(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"the text has {found} places for {name}; one is needed.")
    return new


PAGES = {
    "methods": methods_page,
    "choosing": lambda: choosing.page(GENERATED),
    "rates": rates_page,
    "alignment": alignment_page,
    "problems": problems_page,
    "textbook": lambda: textbook.page(GENERATED),
    "counterexamples": counterexamples_page,
}


def language_models_parts() -> dict[str, str]:
    kept = {"align": align_demo, "billion": billion, "llm-bench": llm_steps}
    parts = {name: part.readme() for name, part in kept.items()}
    return parts | {"options": options.markdown(Align)}


def mixing_parts() -> dict[str, str]:
    return {
        "options": options.markdown(Mixing),
        "results": mixing.readme(),
        "smol": mixing_smol.table(mixing_smol.kept()),
        "steps": mixing_steps.readme(),
    }


def no_method_parts() -> dict[str, str]:
    return {
        "universal": universal_table.table(universal.kept()),
        "tolls": tolls.table(tolls.kept()),
    }


def quickstart(readme: str) -> str:
    """The first example of the README, which usage.md goes on from."""
    return re.findall(r"```python\n.*?```", readme, flags=re.DOTALL)[0]


# Pages by hand, and what stands in each between the marks `<!-- name -->` and `<!-- /name -->`.
PARTS: dict[str, Callable[[], dict[str, str]]] = {
    "CONTRIBUTING.md": lambda: {"layers": layers_table()},
    "docs/apps/cleaning.md": lambda: {"cleaning": finders.table(finders.kept())},
    "docs/apps/index.md": lambda: {"applications": applications.table(applications.kept())},
    "docs/apps/mixing.md": mixing_parts,
    "docs/apps/rl.md": lambda: {"inverse_rl": inverse_rl.table(inverse_rl.kept())},
    "docs/apps/unlearning.md": unlearning.parts,
    "docs/gold-reward.md": gold_reward.parts,
    "docs/language-models.md": language_models_parts,
    "docs/no-method.md": no_method_parts,
    "docs/usage.md": lambda: {"quickstart": quickstart(README.read_text())},
    "docs/sklearn.md": lambda: {"sklearn": estimators.shown(estimators.kept())},
}


def main() -> None:
    for path, parts in PARTS.items():
        fill(path, parts())
    fill("README.md", {"output": quickstart_output(README.read_text())})
    if "--tables" not in sys.argv:
        fill("README.md", {"demo": demo()})
    for name, page in PAGES.items():
        (ROOT / "docs" / f"{name}.md").write_text(page())


def fill(path: str, parts: dict[str, str]) -> None:
    page = ROOT / path
    page.write_text(with_parts(page.read_text(), parts))


def with_parts(text: str, parts: dict[str, str]) -> str:
    for name, content in parts.items():
        text = filled(text, name, content)
    return text


if __name__ == "__main__":
    main()
