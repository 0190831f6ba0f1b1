"""What can be typed after `bilevel`; each command imports what it needs when it is called."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bilevel import host

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
    host.keep_memory()
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


Model = Annotated[Path, typer.Option(help="Hugging Face checkpoint folder.")]
Out = Annotated[Path, typer.Option(help="New folder for checkpoint and report.")]
Steps = Annotated[int, typer.Option(help="Steps.", min=1)]
Batch = Annotated[int, typer.Option(help="Rows of each kind of feedback a step.", min=1)]
Rate = Annotated[float, typer.Option(help="Step size of the policy.", min=0.0)]
Rank = Annotated[int, typer.Option(help="Rank of the LoRA adapter; 0 trains everything.", min=0)]
Adapted = Annotated[
    int | None, typer.Option("--layers", help="Adapt only so many of the last layers.", min=1)
]
Length = Annotated[
    int | None, typer.Option(help="Tokens of a prompt and its response; more are refused.", min=2)
]
HeldOut = Annotated[
    float, typer.Option(help="Share of the feedback to judge by.", min=0.0, max=0.9)
]
LogEvery = Annotated[int, typer.Option(help="Look and save every so many steps.", min=1)]
Seed = Annotated[int, typer.Option(help="Decides split, order and draws.", min=0)]
MeshOf = Annotated[
    str | None,
    typer.Option(
        "--mesh",
        metavar="DATA,MODEL",
        help="Split rows over DATA, heads over MODEL and the weights over all of these devices.",
    ),
]


@app.command()
def align(
    model: Model,
    out: Out,
    demos: Annotated[Path | None, typer.Option(help="JSONL file of demonstrations.")] = None,
    prefs: Annotated[Path | None, typer.Option(help="JSONL file of preferences.")] = None,
    method: Annotated[
        str, typer.Option(help="irl, aihf, aihf-dpo, rlhf, dpo, ipo, spin or sft.")
    ] = "aihf",
    steps: Steps = 200,
    batch: Batch = 8,
    samples: Annotated[int, typer.Option(help="Responses drawn to a prompt.", min=2)] = 4,
    beta: Annotated[float, typer.Option(help="Weight of the divergence from MODEL.")] = 0.1,
    rate: Rate = 1e-4,
    reward_rate: Annotated[float, typer.Option(help="Step size of the reward.", min=0.0)] = 1e-3,
    rank: Rank = 8,
    reward_rank: Annotated[
        int, typer.Option(help="Of the reward's own adapter; 0 leaves a linear head.", min=0)
    ] = 8,
    layers: Adapted = None,
    length: Length = None,
    new: Annotated[int | None, typer.Option(help="Longest response to draw.", min=1)] = None,
    held_out: HeldOut = 0.1,
    divergence: Annotated[
        float, typer.Option(help="Nats of KL from MODEL at which the run is ended.")
    ] = 100.0,
    mesh: MeshOf = None,
    log_every: LogEvery = 10,
    seed: Seed = 0,
) -> None:
    """Align a language model with demonstrations, preferences or both.

    An interrupted run resumes when you give the same command again. If only the last LAYERS are
    adapted and responses are short, the states of the frozen layers are cached for all prompts.
    """
    settings = {
        "steps": steps, "batch": batch, "samples": samples, "beta": beta, "rate": rate,
        "reward_rate": reward_rate, "rank": rank, "reward_rank": reward_rank, "layers": layers,
        "length": length, "new": new, "held_out": held_out, "divergence": divergence,
        "mesh": mesh, "log_every": log_every, "seed": seed,
    }  # fmt: skip
    _align("align", model, demos, prefs, out, method, settings)


@app.command()
def sft(
    model: Model,
    out: Out,
    demos: Annotated[Path, typer.Option(help="JSONL file of demonstrations.")],
    steps: Steps = 200,
    batch: Batch = 8,
    rate: Rate = 1e-4,
    rank: Rank = 8,
    layers: Adapted = None,
    length: Length = None,
    held_out: HeldOut = 0.1,
    mesh: MeshOf = None,
    log_every: LogEvery = 10,
    seed: Seed = 0,
) -> None:
    """Fine-tune a language model on demonstrations.

    Demonstrations are packed side by side into rows of LENGTH tokens (of the longest one when
    absent), which leaves little padding; they do not attend to each other. BATCH is how many
    of them a step learns from, on average, and the loss their mean, each summed over its tokens.
    With LAYERS and short responses the prompt cache (see bilevel align) is used instead.
    """
    settings = {
        "steps": steps, "batch": batch, "rate": rate, "rank": rank, "layers": layers,
        "length": length, "held_out": held_out, "mesh": mesh, "log_every": log_every, "seed": seed,
    }  # fmt: skip
    _align("sft", model, demos, None, out, "sft", settings)


@app.command()
def chat(
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="Answer this, and end.")] = None,
    new: Annotated[int, typer.Option(help="Longest answer, tokens.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest.", min=0.0)] = 0.7,
    top_p: Annotated[
        float | None, typer.Option(help="Draw among the likeliest of this share.")
    ] = 0.9,
    seed: Seed = 0,
) -> None:
    """Talk to a language model; lines come from standard input."""
    from bilevel.cli import chat as command

    try:
        command.run(
            model, prompt=prompt, lines=sys.stdin, new=new, temperature=temperature, top_p=top_p,
            seed=seed,
        )  # fmt: skip
    except (ValueError, OSError, ImportError) as error:
        _refuse("chat", error)
    except KeyboardInterrupt:
        sys.exit(130)


def _align(name: str, model, demos, prefs, out: Path, method: str, settings: dict) -> None:
    from bilevel.apps.llm.run.session import Method, Settings
    from bilevel.cli import alignment as command

    try:
        if method not in {one.value for one in Method}:
            known = ", ".join(one.value for one in Method)
            raise ValueError(f"--method is {method!r}; one of {known} is needed.")
        settings["mesh"] = _mesh(settings["mesh"])
        asked = Settings(Method(method), **settings)
        went_well = command.run(model, demos, prefs, out, asked)
    except (ValueError, OSError, ImportError) as error:
        _refuse(name, error)
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        if not went_well:
            raise typer.Exit(2)


def _mesh(typed: str | None) -> tuple[int, int] | None:
    """`DATA,MODEL`, or `DATA` alone."""
    if typed is None:
        return None
    parts = typed.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--mesh is {typed!r}; two numbers are needed, such as 4,2.")
    rows, heads = (*map(int, parts), 1)[:2]
    return rows, heads


def _refuse(command: str, error: Exception) -> None:
    """One sentence on standard error instead of a traceback."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"bilevel {command}: {error}", markup=False)
    raise typer.Exit(1)
