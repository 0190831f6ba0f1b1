"""The command `bilevel`."""

from bilevel.cli.app import main

__all__ = ["main"]
