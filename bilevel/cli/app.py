"""What can be typed after `bilevel`; each command imports what it needs when it is called."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="bilevel",
    help="Bilevel optimization in JAX.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


bench = typer.Typer(help="Benchmarks on files of problems.", no_args_is_help=True)
app.add_typer(bench, name="bench")


def main() -> None:
    """The entry point."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        from bilevel._version import __version__

        Console().print(f"bilevel {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("bilevel-demo.html"),
    wrong: Annotated[float, typer.Option(help="Share of wrong labels.", min=0.0, max=1.0)] = 0.5,
    steps: Annotated[
        int,
        typer.Option(help="Steps of SOBA; the others may spend as many oracle calls.", min=1),
    ] = 4000,
    seed: Annotated[int, typer.Option(help="Decides split, labels and draws.", min=0)] = 0,
) -> None:
    """Find the wrong labels in a training set, with every method, and write a report."""
    from bilevel.cli import demo as command

    try:
        command.run(out, wrong=wrong, steps=steps, seed=seed)
    except (ValueError, ImportError) as error:
        _refuse("demo", error)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def methods() -> None:
    """List the methods: what they handle, cost and hold, and where they come from."""
    from bilevel.cli import tables

    Console().print(tables.methods())


@bench.command()
def textbook(
    problems: Annotated[
        Path, typer.Option(help="JSON file of problems; bilevel.problems.textbook.load says more.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the table and the figure.")] = Path(
        "bilevel-textbook"
    ),
    only: Annotated[
        list[str] | None, typer.Option(help="Only problems with this in their name; repeatable.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder where compiled programs are kept for the next run."),
    ] = None,
) -> None:
    """Solve small problems with bl.solve and no method; judge each answer independently."""
    from bilevel.cli import textbook as command

    try:
        command.run(problems, out=out, only=only or (), cache=cache)
    except (ValueError, ImportError) as error:
        _refuse("bench textbook", error)
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse(command: str, error: Exception) -> None:
    """One sentence on standard error instead of a traceback."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"bilevel {command}: {error}", markup=False)
    raise typer.Exit(1)
