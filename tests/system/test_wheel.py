"""The wheel, built and installed into a fresh environment, works without the source tree."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]
SOLVE = """
import bilevel as bl
from bilevel import problems
case = problems.quad()
result = bl.solve(case.problem, bl.methods.SOBA(0.05, 0.2, 0.2), case.x0, case.y0, steps=200)
print(bl.__file__, result.status.ok, result.stats.steps)
"""


def run(*command, **options) -> str:
    outside = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
    found = subprocess.run(
        [*map(str, command)], env=outside, capture_output=True, text=True, **options
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
def test_a_wheel_is_built_installed_and_works(tmp_path):
    pip, at = (sys.executable, "-m", "pip"), tmp_path / "env"
    # With the build backend at hand nothing is fetched.
    built_here = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    run(*pip, "wheel", "--no-deps", *built_here, "--wheel-dir", tmp_path, SOURCE)
    (wheel,) = tmp_path.glob("bilevel-*.whl")

    venv.create(at)
    folder = at / ("Scripts" if os.name == "nt" else "bin")
    run(*pip, "--python", folder / "python", "install", "--no-deps", "--no-index", wheel)
    base = {"base": str(at), "platbase": str(at)}
    site = Path(sysconfig.get_path("purelib", "venv", base))
    # Its dependencies are those of this environment, without what is installed here as editable:
    # a .pth file is not read in a folder that another one names.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    assert "Usage: bilevel" in run(folder / "bilevel", "--help", cwd=tmp_path)
    file, ok, steps = run(folder / "python", "-c", SOLVE, cwd=tmp_path).splitlines()[-1].split()
    assert Path(file).is_relative_to(at)
    assert (ok, steps) == ("True", "200")
