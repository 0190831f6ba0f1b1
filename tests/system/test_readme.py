"""The README's tables are those of the classes, and its code runs."""

import re
import tomllib
from pathlib import Path

import jax
import pytest

from bilevel import options
from bilevel.apps.llm.run.settings import Align, PolicyStep
from bilevel.methods import all_methods
from docs.generate import PAGES, PARTS, README, filled, methods_table, with_parts

TEXT = README.read_text()
DOCS = README.parent / "docs"
USAGE = (DOCS / "usage.md").read_text()
ANEW = "run `python -m docs.generate --tables`"


def test_every_method_is_in_the_table():
    table = (DOCS / "methods.md").read_text()
    assert methods_table() in table, ANEW
    ours = [m.__name__ for m in all_methods() if m.__module__.startswith("bilevel.")]
    assert all(f"| `{name}` |" in table for name in ours)


@pytest.mark.parametrize("path", PARTS)
def test_generated_parts_are_up_to_date(path):
    text = (README.parent / path).read_text()
    assert with_parts(text, PARTS[path]()) == text, ANEW


def test_the_config_file_of_the_page_is_read():
    text = (DOCS / "language-models.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    found = options.from_mapping(Align, tomllib.loads(example), "run.toml")
    assert Align(out=Path("ALIGNED"), **found).policy_step is PolicyStep.GRPO


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
    both = re.findall(r"```python\n(.*?)```", USAGE, flags=re.DOTALL)  # begins with the README's
    code = "\n".join(first if pages == 1 else [*first, *both[1:]])
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
