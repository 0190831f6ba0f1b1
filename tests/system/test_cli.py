"""The command `bilevel`, as typed."""

import subprocess
import sys

import pytest
from commands import run

import bilevel as bl
from bilevel import options
from bilevel.apps import cleaning
from bilevel.cli.app import COMMANDS
from bilevel.methods import all_methods, references


def test_version():
    assert run("--version").output.strip() == f"bilevel {bl.__version__}"


def test_no_command_shows_what_there_is():
    output = run().output
    assert "demo" in output
    assert "methods" in output


def test_every_method_is_listed_with_its_price_and_paper():
    found = run("methods")
    assert found.exit_code == 0
    ours = [m for m in all_methods() if m.__module__.startswith("bilevel.")]
    assert len(ours) >= 4
    for method in ours:
        assert method.__name__ in found.output
        assert method.reference().arxiv in found.output
    assert "∇f, ∇ᵧg, Hv, Jv" in found.output  # SOBA


def test_one_method_has_a_page():
    found = run("methods", "soba", columns=80)
    assert found.exit_code == 0
    for told in ("bl.methods.SOBA(x_update=SGD(", "strongly convex", "∇f, ∇ᵧg, Hv, Jv",
                 "arXiv:2201.13409", "radius", "keeps v in the ball"):  # fmt: skip
        assert told in found.output
    assert max(map(len, found.output.splitlines())) <= 80


def test_the_paper_of_a_method_in_bibtex():
    found = run("methods", "SOBA", "--bibtex")
    assert found == (0, references.bibtex("dagreou2022framework") + "\n")
    every = run("methods", "--bibtex").output
    ours = {m.paper for m in all_methods() if m.__module__.startswith("bilevel.")}
    assert every.count("\n@") + 1 == len(ours)


def test_an_unknown_method_is_refused_with_the_nearest():
    told = "bilevel methods: there is no method SOBBA. Did you mean SOBA?\n"
    assert run("methods", "SOBBA") == (2, told)


def test_completion_can_be_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    script = tmp_path / "completion"
    found = run("--install-completion", "--shell", "bash", "--output", str(script))
    assert found.exit_code == 0, found.output
    assert "squared-advantage" in script.read_text()


def test_ctrl_c_ends_with_130(monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("bilevel.cli.methods.run", interrupted)
    assert run("methods").exit_code == 130


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["algn"], "bilevel: Unknown command"),
        (["dpo"], "bilevel: dpo is a method of align: bilevel align --method dpo."),
        (["align"], "bilevel align: --model is needed, with a value."),
        (["bench", "textbook"], "bilevel bench textbook: --problems is needed, with a value."),
        (["demo", "--wrong", "2"], "bilevel demo: --wrong is 2.0; a number from 0 to 1 is needed."),
        (["demo", "--config", "no.toml"], "bilevel demo: no.toml cannot be read: "),
    ],
)
def test_wrong_usage_ends_with_2(typed, told):
    found = run(*typed)
    assert found.exit_code == 2
    assert found.output.startswith(told)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_and_fits_a_terminal(name):
    long, short = (run(*name.split(), flag, columns=80) for flag in ("--help", "-h"))
    assert long == short
    assert long.exit_code == 0
    assert max(map(len, long.output.splitlines())) <= 80
    for option in options.options(COMMANDS[name].settings):
        assert option.argument or f"  {option.flag} " in long.output
        assert " ".join(option.about.split()[:2]) in long.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["SOBA"], ["SOBA", "TTSA", "StocBiO", "F2SA"]], ids=["one method", "all methods"]
)
def test_a_demo_ends_with_a_table_and_a_report(names, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    settings = cleaning.settings()
    monkeypatch.setattr(cleaning, "settings", lambda: {name: settings[name] for name in names})
    out = tmp_path / "report.html"
    found = run("demo", "--out", str(out), "--steps", "30", "--wrong", "0.3", "--seeds", "2")
    assert found.exit_code == 0, found.output
    for told in (*names, "all data", "validation only", "oracle"):
        assert told in found.output
    assert f"Report written to {out}" in found.output
    for clean in (30, 100, 300):
        assert f"{clean} clean samples: Cleaning changes the test accuracy by " in found.output
    assert out.read_text("utf-8").count("<figure") == 3


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("bilevel.apps.cleaning.digits", None)  # calling it would fail
    found = run("demo", "--out", str(tmp_path / "absent" / "r.html"))
    assert found.exit_code == 2
    assert found.output.count("\n") == 1
    assert found.output.startswith("bilevel demo: the report cannot be written to")
    assert "Choose another path." in found.output


def test_what_was_typed_is_repeated_to_the_letter():
    """No emoji and no markup are read in it."""
    found = run("methods", ":smile: [bold]m", columns=40)
    assert found.output.startswith("bilevel methods: there is no method :smile: [bold]m. ")
    assert found.output.count("\n") == 1


@pytest.mark.usefixtures("without_sklearn")
def test_without_scikit_learn_one_sentence_says_what_to_install(tmp_path):
    found = run("demo", "--out", str(tmp_path / "r.html"))
    assert found.exit_code == 1
    assert "pip install 'bilevel[demo]'" in found.output


def test_the_command_and_the_package_start_without_what_few_runs_need():
    told = "print([m for m in ('matplotlib', 'sklearn', 'scipy.optimize') if m in sys.modules])"
    code = [sys.executable, "-c", f"import sys, bilevel, bilevel.cli.app; {told}"]
    assert subprocess.run(code, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "typed", [["--help"], ["--version"], ["align", "--help"], ["demo", "--steps", "x"]]
)
def test_help_and_parsing_import_no_array_library(typed):
    code = (
        "import sys\n"
        "from bilevel.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = ('jax', 'numpy', 'scipy', 'matplotlib')\n"
        "print('imported:', [name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *typed], capture_output=True, text=True, check=True
    )
    assert found.stdout.endswith("imported: []\n")


def test_every_public_name_is_found_when_asked_for():
    code = (
        "import sys, bilevel as bl\n"
        "assert 'jax' not in sys.modules\n"
        "assert {*bl.__all__} <= {*dir(bl)}\n"
        "assert all(getattr(bl, name) is not None for name in bl.__all__)\n"
        "from bilevel import solve\n"
        "assert solve is bl.solve"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'solv'"):
        bl.solv  # noqa: B018
