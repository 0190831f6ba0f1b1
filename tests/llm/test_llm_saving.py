"""What is saved is whole or absent at any moment: kills, a full disk, a limit on files."""

import json
import os
import pathlib
import shutil
import subprocess

import children
import llm_cases
import numpy as np
import pytest
import stopped

from bilevel.apps.llm.hub import checkpoint, folders
from bilevel.apps.llm.run import kept

pytest.importorskip("safetensors")
from safetensors.numpy import load_file

FILES = {"tokenizer_config.json": b"{}", "merges.txt": b"a b"}
SHARDS = {"shard_bytes": 6000}


def made(folder) -> checkpoint.Checkpoint:
    """A checkpoint in NumPy: no program is compiled."""
    source = llm_cases.write_folder("llama-v4", pathlib.Path(folder) / "made")
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    return checkpoint.load(source, place=lambda path, array: array)


def report(folder):
    (folder / "report.html").write_text("<p>all</p>")


def is_whole(folder) -> bool:
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    expected = llm_cases.weights(llm_cases.CASES["llama-v4"])
    same = found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name]) for name in expected
    )
    about = json.loads((folder / "config.json").read_text())
    files = all((folder / name).read_bytes() == content for name, content in FILES.items())
    page = (folder / "report.html").read_text() == "<p>all</p>"
    index = (folder / "model.safetensors.index.json").is_file()
    return same and files and page and index and about == llm_cases.CASES["llama-v4"]


def test_a_full_disk_at_any_moment_leaves_nothing(tmp_path):
    model, out = made(tmp_path), tmp_path / "place" / "out"
    checkpoint.save(model, tmp_path / "place" / "first", **SHARDS)  # all is imported

    def save():
        checkpoint.save(model, out, also=report, **SHARDS)

    count = stopped.calls(save)
    assert is_whole(out)
    shutil.rmtree(out)
    assert count > 20
    # The first makes the folder around `out`, which is there; the last two flush it.
    for at in range(1, count - 2):
        with pytest.raises(OSError, match=r"out could not be written \(No space left"):
            stopped.calls(save, at, stopped.disk_full)
        assert [path.name for path in out.parent.iterdir()] == ["first"]
    save()
    assert is_whole(out)


def killed_at_every_call(folder):
    """In a child: a process is killed before each call, and the next saves over what it left."""
    folder = pathlib.Path(folder)
    model, out, at, code = made(folder), folder / "out", 0, 9

    def save():
        checkpoint.save(model, out, also=report, **SHARDS)

    while code:
        process = os.fork()
        if not process:
            stopped.calls(save, at, stopped.kill)
            os._exit(0)
        code = os.waitpid(process, 0)[1]
        print(json.dumps([code, out.exists() and (is_whole(out) or "torn")]))
        others = sorted(path.name for path in folder.iterdir())
        assert set(others) <= {"made", "out", ".out.bilevel-part"}, others
        shutil.rmtree(out, ignore_errors=True)
        at += 1


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_all_or_nothing(tmp_path):
    told = children.answers("test_llm_saving", "killed_at_every_call", tmp_path)
    assert len(told) > 20
    *killed, last = told
    assert {code for code, _ in killed} == {9}
    assert killed[0] == [9, False]
    assert killed[-1] == [9, True]  # while the folder around it is flushed
    assert all(there in (False, True) for _, there in killed)
    assert last == [0, True]
    assert not (tmp_path / ".out.bilevel-part").exists()


def test_files_larger_than_the_system_allows(tmp_path):
    """The error of the package of safetensors is told like any other of the disk."""
    resource = pytest.importorskip("resource")
    model, out = made(tmp_path), tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"out could not be written \(.*too large.*\); nothing"):
            checkpoint.save(model, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not out.exists()
    checkpoint.save(model, out)


def test_a_small_file_system(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        model, ballast = made(tmp_path), small / "ballast"
        ballast.write_bytes(bytes(56_000))
        with pytest.raises(OSError, match=r"could not be written \(.*No space left"):
            checkpoint.save(model, small / "out")
        assert list(small.iterdir()) == [ballast]
        ballast.unlink()
        checkpoint.save(model, small / "out")
        assert checkpoint.load(small / "out").config == model.config
        shutil.rmtree(small / "out")
        with pytest.raises(FileExistsError, match=r"small is a mount point; .* new folder in it"):
            checkpoint.save(model, small)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_empty_folder_or_a_link_to_one_is_filled(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with folders.new_folder(tmp_path / "link") as part:
        (part / "a").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").is_file()
    with (
        pytest.raises(FileExistsError, match="not empty"),
        folders.new_folder(tmp_path / "real"),
    ):
        pass


def test_a_full_disk_is_not_called_a_lack_of_memory():
    disk = ValueError('RESOURCE_EXHAUSTED: Error writing "a/0": No space left on device')
    with pytest.raises(ValueError, match="No space left"), kept.advice_on_memory("Lower --batch."):
        raise disk


def test_weights_can_be_read_by_whoever_reads_the_other_files(tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.save(made(tmp_path), tmp_path / "saved")
    finally:
        os.umask(before)
    files = [*(tmp_path / "saved").iterdir()]
    assert {file.suffix for file in files} >= {".safetensors", ".json"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o640}
