"""What `--model` may be: a folder, a GGUF file, a name on the hub; and what chat prints."""

import http.server
import io
import json
import pathlib
import struct
import sys
import threading

import children
import jax
import llm_cases
import numpy as np
import pytest
import test_llm_checkpoint
import test_llm_tokenizer
from rich.console import Console

from bilevel.apps.llm.hub import checkpoint, find, gguf
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.cli import chat
from bilevel.cli.options import Chat

pytest.importorskip("safetensors")
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


def in_numpy(found: find.Found) -> checkpoint.Checkpoint:
    """The weights, without compiling a program."""
    return found.load(place=lambda path, array: array)


def with_tokenizer(folder):
    """The tiny Llama, with room for a tokenizer's 300 pieces."""
    about = llm_cases.CASES["llama-v4"] | {"vocab_size": 300}
    llm_cases.write_folder("llama-v4", folder)
    (folder / "config.json").write_text(json.dumps(about))
    test_llm_checkpoint.save_file(llm_cases.weights(about), folder / "model.safetensors")
    return test_llm_tokenizer.write(folder)


# --- GGUF --------------------------------------------------------------------------------------


@pytest.fixture
def gguf_file(tmp_path):
    return test_llm_checkpoint.write_gguf(tmp_path / "model.gguf")


def test_a_gguf_file_is_a_model(gguf_file):
    found = find.find(gguf_file)
    loaded = gguf.load_gguf(gguf_file)
    assert found.config == loaded.config
    assert found.tokenizer.decode(found.tokenizer.encode("HELLO")) == "HELLO"
    again = found.load().params
    jax.tree.map(np.testing.assert_array_equal, again, loaded.params)


@pytest.mark.slow
def test_a_gguf_file_chats_and_is_aligned(gguf_file, tmp_path):
    talk = chat.open_talk(gguf_file, Drawing(new=3, temperature=0.0), 0)
    said = talk.say("HELLO")
    rows = [{"prompt": f"HELLO{i}", "completion": "IAM"} for i in range(4)]
    demos = tmp_path / "demos.jsonl"
    demos.write_text("\n".join(map(json.dumps, rows)))
    from bilevel.apps.llm.run import session

    settings = session.Settings(method=session.Method.SFT, steps=1, batch=2)
    given = session.load(gguf_file, demos, None, settings)
    session.save(given, session.train(given, None), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    again = chat.open_talk(tmp_path / "out", Drawing(new=3, temperature=0.0), 0)
    assert isinstance(again.say("HELLO"), str)
    assert isinstance(said, str)


def test_a_torn_gguf_file_is_refused(gguf_file, tmp_path):
    content, torn = gguf_file.read_bytes(), tmp_path / "torn.gguf"
    for length in (0, 3, 8, 24, 100, 500, 1500, len(content) // 2, len(content) - 9):
        torn.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a GGUF file, or is cut off"):
            find.find(torn)


def one_value(kind: int, value: bytes, pairs: int = 1) -> bytes:
    """A GGUF file of no tensors and one value."""
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, pairs)
    return start + struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "content",
    [
        one_value(9, struct.pack("<IQ", 0, 2**60)),  # an array of bytes, of which there are none
        one_value(9, struct.pack("<IQ", 8, 2**60)),
        one_value(9, struct.pack("<IQ", 9, 2**22) + struct.pack("<IQ", 0, 0) * 9),
        one_value(8, struct.pack("<Q", 2**63)),
        one_value(4, struct.pack("<I", 1), pairs=2**60),
        one_value(77, b""),
    ],
    ids=["numbers", "texts", "arrays", "one text", "pairs", "unknown type"],
)
def test_counts_that_a_gguf_file_does_not_hold_are_refused(content, tmp_path):
    file = tmp_path / "huge.gguf"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a GGUF file, or is cut off: (it|a value)"):
        find.find(file)


# --- the hub -----------------------------------------------------------------------------------

COMMIT = "c0ffee" + 34 * "0"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs, for one model."""

    name = "someone/tiny"
    folder: pathlib.Path
    asked: list[str]

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked.append(path)
        files = {file.name: file for file in self.folder.iterdir()}
        if path.startswith(f"/api/models/{self.name}/revision/"):
            siblings = [{"rfilename": name} for name in files]
            self._say({"id": self.name, "modelId": self.name, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/api/models/{self.name}/tree/"):
            sizes = {name: file.stat().st_size for name, file in files.items()}
            self._say([{"type": "file", "path": name, "size": size, "oid": f"{size:040d}"}
                       for name, size in sizes.items()])  # fmt: skip
        elif path.startswith(f"/{self.name}/resolve/") and path.split("/")[-1] in files:
            self._send(200, files[path.split("/")[-1]].read_bytes())
        elif "gated" in path:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _say(self, found):
        self._send(200, json.dumps(found).encode())

    def _send(self, code, content, more=None):
        self.send_response(code)
        headers = {"Content-Length": len(content), "ETag": f'"{len(content):040d}"'}
        for name, value in (headers | {"X-Repo-Commit": COMMIT} | (more or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, which the child processes ask, and a cache of their own."""
    pytest.importorskip("huggingface_hub")
    Hub.folder, Hub.asked = with_tokenizer(tmp_path / "model"), []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.chdir(tmp_path / "model")  # no name is a path here
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


def look_up(*names):
    """In a child: what comes of names, one after the other."""
    for name in names:
        try:
            found = find.find(pathlib.Path(name))
            params = in_numpy(found).params
            print(json.dumps([found.config.vocab_size, float(np.abs(params["embed"]).sum())]))
        except (OSError, ImportError) as error:
            print(json.dumps([type(error).__name__, str(error)]))


def test_a_name_is_looked_up_on_the_hub(hub, monkeypatch):
    child = ("test_llm_find", "look_up")
    model, none, gated = children.answers(*child, hub.name, "someone/else", "gated/model")
    total = float(np.abs(in_numpy(find.find(hub.folder)).params["embed"]).sum())
    assert model == [300, total]
    loaded = [path.split("/")[-1] for path in hub.asked if f"/{hub.name}/resolve/" in path]
    assert loaded.index("config.json") < loaded.index("model.safetensors")
    assert none[0] == "FileNotFoundError"
    assert none[1].startswith("someone/else is no folder or file here, and the hub has no such")
    assert gated[0] == "FileNotFoundError"
    assert "accept its terms" in gated[1]
    # Offline, what the cache holds is enough.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    model, other = children.answers(*child, hub.name, "someone/else")
    assert model == [300, total]
    assert other[0] == "ConnectionError"
    assert "and the hub cannot be reached to look it up. Check the name" in other[1]
    assert hub.asked == []


def test_a_hub_that_cannot_be_reached_is_told(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{children.free_port()}")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    kind, words = children.answer("test_llm_find", "look_up", "someone/tiny")
    assert kind == "ConnectionError"
    assert words.startswith("someone/tiny is no folder or file here, and the hub cannot be reached")


def test_without_the_package_a_name_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"^someone/tiny is no .*: pip install 'bilevel\[hub\]'"):
        find.find("someone/tiny")


@pytest.mark.parametrize("name", ["a/b/c", "./", "~/model", "/none/here", "a b", "../x"])
def test_a_path_is_not_looked_up(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is not a folder|has no config.json"):
        find.find(name)


# --- what chat prints --------------------------------------------------------------------------


def test_chat_prints_what_the_model_said(monkeypatch, tmp_path):
    said = (
        ":smile: [bold]not[/bold] [link=x]y[/link]\n"
        "\x1b[31mred\x1b]0;title\x07 \x9b2J\rover\ttab \x00 é 你好 👩‍👩‍👧 " + 40 * "long "
    )
    expected = (
        ":smile: [bold]not[/bold] [link=x]y[/link]\n"
        "[31mred]0;title 2Jover\ttab  é 你好 👩‍👩‍👧 " + 40 * "long "
    )
    out = io.StringIO()

    class Said:
        def say(self, line):
            return said

    terminal = Console(file=out, force_terminal=True, width=40, soft_wrap=True, highlight=False)
    monkeypatch.setattr(chat, "plain_console", lambda **_: terminal)
    monkeypatch.setattr(chat, "open_talk", lambda *_: Said())
    chat.run(Chat(model=tmp_path, prompt="hello", new=1, temperature=0.0))
    assert out.getvalue() == expected + "\n"
