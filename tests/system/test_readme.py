"""The README's tables are those of the classes, and its code runs."""

import re
import tomllib
from pathlib import Path

import jax
import pytest

from benchmarks import applications
from benchmarks import sklearn_tables as estimators
from benchmarks.gold_reward import show as gold_reward
from benchmarks.unlearning import show as unlearning
from bilevel import options
from bilevel.apps.llm.run.settings import Align, PolicyStep
from bilevel.methods import all_methods
from docs.generate import (
    CONTRIBUTING,
    GOLD_REWARD,
    KEPT,
    LANGUAGE_MODELS,
    MIXING,
    PAGES,
    README,
    SKLEARN,
    UNLEARNING,
    filled,
    methods_table,
    mixing_parts,
)
from docs.layers import layers_table

TEXT = README.read_text()
DOCS = README.parent / "docs"
USAGE = (DOCS / "usage.md").read_text()
ANEW = "run `python -m docs.generate --tables`"


def test_every_method_is_in_the_table():
    table = (DOCS / "methods.md").read_text()
    assert methods_table() in table, ANEW
    ours = [m.__name__ for m in all_methods() if m.__module__.startswith("bilevel.")]
    assert all(f"| `{name}` |" in table for name in ours)


@pytest.mark.parametrize("name", KEPT)
def test_figures_of_benchmarks_are_those_of_the_kept_runs(name):
    text = LANGUAGE_MODELS.read_text()
    assert filled(text, name, KEPT[name].readme()) == text, ANEW


@pytest.mark.parametrize("name", gold_reward.parts())
def test_tables_of_the_gold_reward_are_those_of_the_kept_runs(name):
    text = GOLD_REWARD.read_text()
    assert filled(text, name, gold_reward.parts()[name]) == text, ANEW


@pytest.mark.parametrize("name", mixing_parts())
def test_tables_of_mixing_are_those_of_the_command_and_the_kept_runs(name):
    text = MIXING.read_text()
    assert filled(text, name, mixing_parts()[name]) == text, "run `make generated`"


def test_the_table_of_estimators_is_that_of_the_kept_run():
    text = SKLEARN.read_text()
    told = estimators.shown(estimators.kept())
    assert filled(text, "sklearn", told) == text, "run `make generated`"


def test_the_table_of_unlearning_is_that_of_the_kept_runs():
    text, name = UNLEARNING.read_text(), "forget01"
    assert filled(text, name, unlearning.table(name)) == text, "run `make generated`"


def test_the_options_are_those_of_the_command():
    text = LANGUAGE_MODELS.read_text()
    assert filled(text, "options", options.markdown(Align)) == text, ANEW
    (example,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    found = options.from_mapping(Align, tomllib.loads(example), "run.toml")
    assert Align(out=Path("ALIGNED"), **found).policy_step is PolicyStep.GRPO


def test_the_layers_in_contributing_are_those_of_the_test():
    text = CONTRIBUTING.read_text()
    assert filled(text, "layers", layers_table()) == text, ANEW


def test_the_comparison_of_applications_is_the_kept_one():
    text = (DOCS / "apps" / "index.md").read_text()
    told = applications.table(applications.kept())
    assert filled(text, "applications", told) == text, "run `make generated`"


def test_generated_pages_are_up_to_date():
    for name, page in PAGES.items():
        assert (DOCS / f"{name}.md").read_text() == page(), ANEW


def test_images_and_pages_exist():
    for page in (README, *DOCS.glob("*.md")):
        for path in re.findall(r"\]\(([^):#]+?)(?:#.*?)?\)", page.read_text()):
            assert (page.parent / path).exists(), f"{page.name} points to {path}"


@pytest.mark.slow(unless=lambda pages: pages == 1)
@pytest.mark.parametrize("pages", [1, 2], ids=["README", "usage"])
def test_code_runs(pages, capsys):
    """In single precision and standard promotion, as a reader would run it; usage.md goes on."""
    first = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    goes_on = re.findall(r"```python\n(.*?)```", USAGE, flags=re.DOTALL) if pages == 2 else []
    code = "\n".join([*first, *goes_on])
    assert code.count("bl.solve") == 1
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        jax.config.update("jax_enable_x64", False)
        try:
            scope: dict = {}
            exec(compile(code, "README.md", "exec"), scope)
        finally:
            jax.config.update("jax_enable_x64", True)
    assert scope["result"].status.ok
    assert scope["result"].history["val"][-1] < 0.6 * scope["result"].history["val"][0]
    assert pages == 1 or scope["states"].x.shape == (8, 50)
    shown = re.search(r"<!-- output -->\n```\n(.*?)\n```", TEXT, flags=re.DOTALL)
    assert shown
    assert capsys.readouterr().out.startswith(shown[1])


def test_a_missing_place_is_told():
    with pytest.raises(ValueError, match="0 places for methods"):
        filled("no marks", "methods", "")
