"""Commands as typed, in this process."""

import contextlib
import io
import os
import sys
from typing import NamedTuple
from unittest import mock

from bilevel.cli import main


class Ran(NamedTuple):
    exit_code: int
    output: str  # standard output and error, as they came


def run(*words: str, columns: int = 200, input: str = "") -> Ran:
    """Type `bilevel WORDS` into a terminal of a width, and lines of input."""
    output = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=str(columns)),
        mock.patch.object(sys, "stdin", io.StringIO(input)),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            main(words)
        except SystemExit as ended:
            return Ran(int(ended.code or 0), output.getvalue())
    raise AssertionError("main returned")
