"""The documentation site: `make docs` writes static files into build/docs that open offline."""

import logging
import os
import re
import sys
import typing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for name in ("absl", "jax"):  # Sphinx lets everything through
    logging.getLogger(name).setLevel(logging.WARNING)
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")  # for the tutorial on a mesh
typing.GENERATING_DOCUMENTATION = True  # jaxtyping then shows short array types

from bilevel._version import __version__  # noqa: E402
from docs import reference  # noqa: E402

project, author, release = "bilevel", "The bilevel developers", __version__
copyright = "The bilevel developers"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["**/README.md", "**/GALLERY_HEADER.rst"]
default_role = "code"  # our docstrings mark code as Markdown does
html_theme = "furo"
html_title = f"bilevel {release}"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_dark_style = "github-dark"  # the theme's own underlines every imported name
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path: list[str] = []

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "groupwise"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Reference", "notes_style"), ("References", "notes_style")]
suppress_warnings = ["config.cache", "ref.python"]  # fields of one name in two classes

sphinx_gallery_conf = {
    "examples_dirs": ["../tutorials"],
    "gallery_dirs": ["tutorials"],
    "filename_pattern": r"/\d\d_",
    "within_subsection_order": "FileNameSortKey",
    "show_memory": False,
    "write_computation_times": False,
    "download_all_examples": False,
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "plot_gallery": "True",
    "matplotlib_animations": False,
}


def setup(app: typing.Any) -> None:
    app.connect("builder-inited", lambda app: reference.write(Path(app.srcdir)))
    app.connect("autodoc-skip-member", _is_plain_field)
    app.connect("source-read", _to_pages_of_tutorials)


def _to_pages_of_tutorials(app, docname, source) -> None:
    """Links that lead to a script on GitHub lead to its page on the site."""
    source[0] = re.sub(r"\]\(\.\./((?:\.\./)*tutorials/\w+)\.py\)", r"](\1.rst)", source[0])


def _is_plain_field(app, what, name, found, skip, options) -> bool | None:
    """Fields of named tuples, of which the signature says all."""
    return True if str(getattr(found, "__doc__", "")).startswith("Alias for field") else None
