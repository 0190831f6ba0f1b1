"""Which tests are slow; double precision and no silent promotion, for every test."""

import builtins
import gc
import inspect
import os
import pathlib
import shutil
import time

import pytest

# Most of a test's time is compilation, and most of that optimises code that runs once.
LEVEL = "--xla_backend_optimization_level"
if LEVEL not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {LEVEL}=0"

import jax  # noqa: E402  (it reads XLA_FLAGS)

# Most programs of one method are another's too: compile each once, for both workers, the processes
# that tests start, and the next run, of this clone or another. (Two writing one at the same time do
# no harm: a torn file is noticed, and compiled again.)
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
PROGRAMS = CACHE / "bilevel" / "test-programs"
KEPT = {
    "jax_compilation_cache_dir": str(PROGRAMS),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in KEPT.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# A fast test takes at most this, with nothing compiled before it. Child processes do not count.
LIMIT = 30.0  # seconds of processor time


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def is_slow(item) -> bool:
    """Whether the test has a mark `slow` whose predicate, if any, fails for its parameters."""
    given = item.callspec.params if hasattr(item, "callspec") else {}

    def holds(unless=None):
        names = inspect.signature(unless).parameters if unless else ()
        return unless is None or not unless(**{name: given[name] for name in names})

    return any(holds(*mark.args, **mark.kwargs) for mark in item.iter_markers("slow"))


def pytest_collection_modifyitems(config, items):
    if not config.getoption("slow"):
        slow = [item for item in items if is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    start = time.process_time()
    result = yield
    took = time.process_time() - start
    if took > LIMIT and not is_slow(pyfuncitem):
        pytest.fail(
            f"took {took:.0f} s of processor time, and a test that is not marked `slow` takes at "
            f"most {LIMIT:.0f} s: make it cheaper, or give it @pytest.mark.slow",
            pytrace=False,
        )
    return result


def pytest_sessionstart(session):
    """Keep the folder of programs small: those of changed code are never asked for again."""
    leads = not hasattr(session.config, "workerinput")
    if leads and sum(file.stat().st_size for file in PROGRAMS.glob("*")) > 1e9:
        shutil.rmtree(PROGRAMS)


@pytest.fixture
def without_sklearn(monkeypatch):
    """As if scikit-learn were not installed."""
    real = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)


@pytest.fixture(autouse=True)
def few_programs():
    """Forget compiled programs before they fill the memory, or the system's table of memory maps.

    Every compiled program holds a few maps and megabytes, and a worker of the suite compiles
    thousands: at 30,000 maps (of the 65,530 allowed) a worker held 8 GB.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and sum(1 for _ in maps.open("rb")) > 12_000:
        jax.clear_caches()
        gc.collect()
