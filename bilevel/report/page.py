"""The page around the blocks: one self-contained HTML file."""

import datetime
import html
import importlib.resources
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from bilevel._version import __version__
from bilevel.report.blocks import Section

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<header><h1>{title}</h1>{lead}</header>
<main>
{sections}
</main>
<footer>Written by bilevel {version} on {date}.</footer>
</body>
</html>
"""


def render(title: str, sections: Sequence[Section], lead: str = "") -> str:
    """The page as text: its `title`, `lead` and sections, with all figures inside."""
    css = importlib.resources.files("bilevel.report").joinpath("page.css").read_text("utf-8")
    return PAGE.format(
        title=html.escape(title),
        lead=f'<p class="lead">{html.escape(lead)}</p>' if lead else "",
        css=css,
        sections="\n".join(section.html() for section in sections),
        version=__version__,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def write(path: str | Path, title: str, sections: Sequence[Section], lead: str = "") -> Path:
    """Write the page and return its path.

    Args:
        sections: from `of`, or sections of your own, in the order of the page.
        lead: a sentence or two under the title.

    Raises:
        ValueError: the file cannot be written, in one sentence.
    """
    path = check_writable(path)
    path.write_text(render(title, sections, lead), encoding="utf-8")
    return path


def try_write(
    path: str | Path, title: str, sections: Callable[[], Sequence[Section]], lead: str = ""
) -> str:
    """Write the page of the sections that a function makes; a sentence if that failed, else "".

    Raises nothing: a finished run is not lost to a figure that cannot be drawn. `path`, `title` and
    `lead` are those of `write`.
    """
    try:
        write(path, title, sections(), lead)
    except Exception as error:
        return f"The report could not be made: {type(error).__name__}: {error}"
    return ""


def check_writable(path: str | Path, what: str = "the report") -> Path:
    """Raise an error if `write` could not write to the path; leaves no file behind.

    Args:
        path: of a file.
        what: what is to be written there, for the message.

    Returns:
        The path, with `~` expanded.

    Raises:
        ValueError: the path cannot be written to; the message gives the reason.
    """
    path = Path(path).expanduser()
    reason = None
    if path.is_dir():
        reason = "it is a folder"
    elif not path.parent.is_dir():
        reason = f"there is no folder {path.parent}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "there is no permission to write there"
    if reason is not None:
        raise ValueError(f"{what} cannot be written to {path}: {reason}. Choose another path.")
    return path
