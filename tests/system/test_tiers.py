"""What `@pytest.mark.slow` leaves out, in a child process that reads tests/conftest.py."""

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = """
import conftest
import pytest

@pytest.mark.slow
def test_marked():
    pass

@pytest.mark.slow(unless=lambda name, size: name == "a" and size < 3)
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_some(name, size):
    pass

def test_long():
    conftest.LIMIT = -1.0
"""


@pytest.mark.slow(unless=lambda options: options == [])
@pytest.mark.parametrize(("options", "passed"), [([], 2), (["--slow"], 7)])
def test_what_is_slow_is_run_on_demand_and_what_takes_long_must_say_so(tmp_path, options, passed):
    (tmp_path / "test_it.py").write_text(TESTS)
    here = str(pathlib.Path(__file__).parents[1])
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*command, "--confcutdir", tmp_path, "--rootdir", tmp_path, *options, tmp_path],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": here},
        capture_output=True,
        text=True,
    )
    last = found.stdout.splitlines()[-1]
    assert f"1 failed, {passed} passed" in last, found.stdout
    assert "FAILED test_it.py::test_long" in found.stdout
    assert "a test that is not marked `slow` takes at most" in found.stdout
