"""The README's tables are those of the classes, and its code runs."""

import re
from pathlib import Path

import jax
import pytest

from bilevel.methods import all_methods
from docs.generate import CONTRIBUTING, KEPT, PAGES, README, filled, methods_table
from docs.layers import layers_table

TEXT = README.read_text()


def test_table_of_methods_is_up_to_date():
    assert filled(TEXT, "methods", methods_table()) == TEXT, "run `make generated`"
    ours = [m.__name__ for m in all_methods() if m.__module__.startswith("bilevel.")]
    assert all(f"| `{name}` |" in TEXT for name in ours)


@pytest.mark.parametrize("name", KEPT)
def test_figures_of_benchmarks_are_those_of_the_kept_runs(name):
    assert filled(TEXT, name, KEPT[name].readme()) == TEXT, "run `make generated`"


def test_the_layers_in_contributing_are_those_of_the_test():
    text = CONTRIBUTING.read_text()
    assert filled(text, "layers", layers_table()) == text, "run `make generated`"


def test_generated_pages_are_up_to_date():
    docs = Path(README).parent / "docs"
    for name, page in PAGES.items():
        assert (docs / f"{name}.md").read_text() == page(), "run `make generated`"


def test_images_exist():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (Path(README).parent / path).is_file()


def test_code_runs(capsys):
    """In single precision and standard promotion, as a reader would run it."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL))
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
    assert scope["states"].x.shape == (8, 50)
    assert "certificate" in capsys.readouterr().out


def test_a_missing_place_is_told():
    with pytest.raises(ValueError, match="0 places for methods"):
        filled("no marks", "methods", "")
