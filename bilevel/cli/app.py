"""What can be typed after `bilevel`: a table of commands, and `main`, which runs one.

A command is a dataclass of options and a function that takes one; its module is imported when the
command runs, so that help and parsing load no array library.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cyclopts import App, CycloptsError, Group, Parameter, Token
from cyclopts.exceptions import (
    MissingArgumentError,
    UnknownCommandError,
    UnusedCliTokensError,
)

from bilevel import host, options
from bilevel.apps.dag.settings import Dag
from bilevel.apps.denoising.settings import Denoise
from bilevel.apps.games.settings import Mip
from bilevel.apps.llm.evaluation.settings import Evaluate
from bilevel.apps.llm.mixing.settings import Mix
from bilevel.apps.llm.run.settings import SFT, Align, Method
from bilevel.apps.llm.unlearning.settings import Unlearn
from bilevel.apps.networks.settings import NetworkOptions
from bilevel.apps.pruning.settings import Prune
from bilevel.apps.reweight.settings import Reweight
from bilevel.apps.rl.settings import IRL, Experts
from bilevel.apps.tuning.settings import Tune
from bilevel.cli.help import PlainHelp
from bilevel.cli.options import Chat, Clean, Compare, Demo, Methods, Probe, Run, Textbook
from bilevel.errors import Failed, Refused

FAILED, WRONG, INTERRUPTED = 1, 2, 130  # exit codes; WRONG: what was typed, or a file, is at fault
AT_FAULT = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError,
            PermissionError)  # fmt: skip


class Command(NamedTuple):
    """Options, and the function that takes them: `None` or whether all went well comes back."""

    settings: type[options.Settings]
    function: str  # "module:function"


COMMANDS = {
    "demo": Command(Demo, "bilevel.cli.demo:run"),
    "run": Command(Run, "bilevel.cli.solving:run"),
    "compare": Command(Compare, "bilevel.cli.solving:compare"),
    "probe": Command(Probe, "bilevel.cli.solving:probe"),
    "methods": Command(Methods, "bilevel.cli.methods:run"),
    "tune": Command(Tune, "bilevel.apps.tuning.run:run"),
    "clean": Command(Clean, "bilevel.cli.clean:run"),
    "reweight": Command(Reweight, "bilevel.apps.reweight.run:run"),
    "network": Command(NetworkOptions, "bilevel.apps.networks.run:run"),
    "mip": Command(Mip, "bilevel.apps.games.run:run"),
    "denoise": Command(Denoise, "bilevel.apps.denoising.run:run"),
    "prune": Command(Prune, "bilevel.apps.pruning.run:run"),
    "dag": Command(Dag, "bilevel.apps.dag.run:run"),
    "sft": Command(SFT, "bilevel.cli.alignment:sft"),
    "mix": Command(Mix, "bilevel.cli.mixing:mix"),
    "unlearn": Command(Unlearn, "bilevel.cli.unlearning:unlearn"),
    "align": Command(Align, "bilevel.cli.alignment:align"),
    "chat": Command(Chat, "bilevel.cli.chat:run"),
    "evaluate": Command(Evaluate, "bilevel.apps.llm.evaluation.run:run"),
    "irl": Command(IRL, "bilevel.apps.rl.run:run"),
    "experts": Command(Experts, "bilevel.apps.rl.neural.run:experts"),
    "bench textbook": Command(Textbook, "bilevel.cli.textbook:run"),
}
FOLDERS = {"bench": "Benchmarks on files of problems."}


def main(words: Sequence[str] | None = None) -> None:
    """The entry point: exits with 0, 1 (refused or failed), 2 (bad input) or 130 (Ctrl-C).

    1 where what was given is well formed: no method handles it, a run diverged, a package is
    missing, the disk is full. 2 where an option, a file, a column, a module or a name is wrong.
    """
    host.keep_memory()
    words = sys.argv[1:] if words is None else list(words)
    try:
        code = app()(words)
    except CycloptsError as error:
        chain = " ".join(error.command_chain or ())
        _say(chain, _sentence(error))
        code = WRONG
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


def app() -> App:
    """The commands, as Cyclopts parses them."""
    root = App(
        name="bilevel",
        help="Bilevel optimization in JAX.",
        version=_version,
        help_flags=("--help", "-h"),
        version_flags="--version",
        help_format="plaintext",
        help_formatter=PlainHelp(),
        default_parameter=Parameter(negative="", allow_repeating=True),  # the last counts
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        config=_read_config,
    )
    last_ones = {name: App(name=name, help=text, sort_key=99) for name, text in FOLDERS.items()}
    folders = {"": root, **last_ones}
    for i, (name, command) in enumerate(COMMANDS.items()):
        folder, _, last = name.rpartition(" ")
        about = inspect.cleandoc(command.settings.__doc__ or "")
        folders[folder].command(_callable(name, command), name=last, help=about, sort_key=i)
    for folder in last_ones.values():
        root.command(folder)
    root.register_install_completion_command(help="Install completion for your shell.")
    panel = Group("Options", sort_key=1)
    for flag in ("--help", "--version", "--install-completion"):
        root[flag].group = panel
    return root


def _version() -> str:
    from bilevel._version import __version__

    return f"bilevel {__version__}"


def _callable(name: str, command: Command) -> Callable[..., int]:
    """A function whose signature holds the options."""

    def run(*arguments: Any, **given: Any) -> int:
        given.pop("config", None)  # _read_config has read it
        names = (option.name for option in options.options(command.settings) if option.argument)
        given |= dict(zip(names, arguments, strict=False))
        try:
            settings = command.settings(**given)
        except ValueError as error:
            _say(name, str(error))
            return WRONG
        module, _, function = command.function.partition(":")
        try:
            fine = getattr(importlib.import_module(module), function)(settings)
        except (ValueError, OSError, ImportError, Failed) as error:
            _say(name, str(error))
            wrong = isinstance(error, AT_FAULT) and not isinstance(error, Refused)
            return WRONG if wrong else FAILED
        return FAILED if fine is False else 0

    found = [_parameter(option) for option in options.options(command.settings)]
    found.sort(key=lambda one: one.kind)  # arguments first
    run.__signature__ = inspect.Signature([*found, CONFIG])
    run.__annotations__ = {one.name: one.annotation for one in (*found, CONFIG)}
    return run


def _parameter(option: options.Option) -> inspect.Parameter:
    as_it_is = option.kind in (bool, options.Strings)  # which Cyclopts reads well
    told = Parameter(
        name=None if option.argument else option.flag,
        group=_panel(option.group or "Options"),
        help=option.about,
        converter=None if as_it_is else lambda _, tokens: option.parse(tokens[0].value),
        n_tokens=None if as_it_is else 1,
        consume_multiple=option.several,
        show_default=False if option.plain else options.shown,
        required=option.required,
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.POSITIONAL_ONLY if option.argument else inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if option.required else option.default,
        annotation=Annotated[option.kind | None if option.optional else option.kind, told],
    )


@functools.cache
def _panel(name: str) -> Group:
    """A heading of help; they stand in the order in which they are first asked for."""
    return Group.create_ordered(name)


CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        Parameter(
            group=Group("Configuration"),
            help="TOML file of options, such as steps = 500; what is typed counts more.",
        ),
    ],
)


def _read_config(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Give options that were not typed the values of the file after `--config`."""
    name = " ".join(commands)
    typed = {argument.name: argument for argument in arguments}
    if name not in COMMANDS or not typed["--config"].tokens:
        return
    path = Path(typed["--config"].tokens[0].value)
    try:
        found = options.from_file(COMMANDS[name].settings, path)
    except ValueError as error:
        raise CycloptsError(msg=str(error)) from error
    for argument in arguments:
        key = argument.field_info.name
        if key in found and not argument.tokens:
            argument.append(Token(keyword=key, source=str(path), implicit_value=found[key]))


def _sentence(error: CycloptsError) -> str:
    """What was wrong with what was typed."""
    if error.msg:  # ours
        return str(error.msg)
    if isinstance(error, MissingArgumentError) and error.argument:
        return f"{error.argument.name} is needed, with a value."
    if isinstance(error, UnusedCliTokensError):
        return f"{' '.join(error.unused_tokens or [])} belongs to no option."
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        word = error.unused_tokens[0]
        if word in (method.value for method in Method):
            return f"{word} is a method of align: bilevel align --method {word}."
    error.verbose = False
    return str(error)


def _say(command: str, told: str) -> None:
    """On standard error, in place of a traceback."""
    from bilevel.cli.console import plain_console

    console = plain_console(stderr=True, soft_wrap=True)
    console.print(f"{f'bilevel {command}'.strip()}: {told}")
