"""Options of training: accumulation, formats, targets, schedules, limits, logs, changed options."""

import dataclasses
import functools
import json
import pathlib
import shutil
import signal
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import run
from test_llm_tokenizer import write as write_tokenizer

from bilevel import options, report
from bilevel.apps.llm.hub import checkpoint, folders
from bilevel.apps.llm.models import config, parameters, transformer
from bilevel.apps.llm.run import method, session
from bilevel.apps.llm.run.monitor import Monitor
from bilevel.apps.llm.run.session import Method, Settings
from bilevel.apps.llm.run.settings import SFT, Align, Dtype, PolicyStep, Schedule
from bilevel.cli import alignment, resumable
from bilevel.updates import Clipped, FromOptax

pytest.importorskip("safetensors")
CONFIG = config.llama(300, 16, 32, 2, 2, tied=True, max_length=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "model"
    made = checkpoint.new(CONFIG, parameters.init(CONFIG, jax.random.key(0), deviation=0.2))
    checkpoint.save(made, path)
    return write_tokenizer(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Demonstrations and preferences with responses of several lengths."""
    path = tmp_path_factory.mktemp("data")
    asked = [f"hello {i}" for i in range(8)]
    said = [" world" * (1 + i % 3) for i in range(8)]
    both = list(zip(asked, said, strict=True))
    shown = [{"prompt": text, "completion": world} for text, world in both]
    pairs = [{"prompt": text, "chosen": world, "rejected": " there"} for text, world in both]
    for name, rows in (("demos", shown), ("prefs", pairs)):
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path / "demos.jsonl", path / "prefs.jsonl"


def given(model, files, **changes) -> session.Session:
    told = {"steps": 4, "batch": 4, "samples": 2, "log_every": 2, "held_out": 0.25, "rate": 1e-2}
    return session.load(model, *files, Settings(**told | changes))


def trained(model, files, **changes) -> session.TrainResult:
    return session.train(given(model, files, **changes), None)


# --- accumulation ------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 5, 9])
def test_parts_change_neither_values_nor_gradients(parts):
    rows = {"a": jnp.arange(10.0).reshape(5, 2), "mask": jnp.arange(5) % 2 == 0}

    def loss(w, parts):
        def fn(rows):
            return jnp.where(rows["mask"][:, None], jnp.sin(rows["a"] * w), 0), rows["a"][:, 0] * w

        two, one = transformer.in_parts(fn, parts, rows)
        return (two**2).sum() + jnp.cumsum(one)[2]

    whole, some = (jax.value_and_grad(functools.partial(loss, parts=n))(0.7) for n in (1, parts))
    np.testing.assert_allclose(some, whole, rtol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"method": Method.SFT, "rank": 0},
        {"method": Method.DPO},
        {"method": Method.DPO, "layers": 1},  # the prompt cache
        {"method": Method.AIHF, "policy_step": PolicyStep.PPO},
        {"method": Method.AIHF, "batch": 3},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_accumulated_gradients_are_those_of_the_large_batch(model, files, changes):
    """Equal to float accuracy, for any method: a batch of responses of several lengths."""
    whole, parts = (trained(model, files, accumulate=n, **changes) for n in (1, 2))
    start = given(model, files, **changes).task.reference
    moved = [float(abs(a - b).max()) for a, b in _pairs(whole.policy, start)]
    assert max(moved) > 1e-3
    for a, b in _pairs((whole.policy, whole.reward), (parts.policy, parts.reward)):
        np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_allclose(whole.history["KL"], parts.history["KL"], atol=1e-4)


def _pairs(a, b):
    return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)


# --- format and targets ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "learned"),
    [
        ("sft", 2, lambda history: history["loss"][0] - 0.5 > history["loss"][-1]),
        ("aihf", 1, lambda history: history["spread"][-1] > 0.05),
    ],  # the reward leads, from 0
)
def test_activations_in_bfloat16_learn_alike(model, files, name, layers, learned):
    asked = {"method": Method(name), "steps": 20, "layers": layers}
    exact, rough = (trained(model, files, dtype=dtype, **asked) for dtype in Dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough.policy)} == {jnp.dtype("float32")}
    assert learned(exact.history)
    assert learned(rough.history)
    np.testing.assert_allclose(exact.history["loss"], rough.history["loss"], rtol=0.05)
    assert any((a != b).any() for a, b in _pairs(exact.policy, rough.policy))


def test_targets_and_scale_reach_the_adapter(model, files):
    task = given(model, files, method=Method.DPO, targets=("query", "up"), scale=1.5, rank=3)
    assert task.policy.trained.scale == 1.5
    for layer in task.task.reference["layers"]:
        assert {name: leaves["a"].shape for name, leaves in layer.items()} == {
            "query": (16, 3), "up": (16, 3),
        }  # fmt: skip
    with pytest.raises(ValueError, match=r"targets are \['q_proj'\]; some of \['down', "):
        given(model, files, method=Method.DPO, targets=("q_proj",))
    with pytest.raises(ValueError, match="--targets has no effect with --rank 0"):
        Settings(targets=("query",), rank=0)


# --- how parameters move -----------------------------------------------------------------------

UP = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}
TREE = {"up": UP, "norm": {"scale": jnp.ones(2)}}


def moved_by(update, slopes):
    tree, memory = TREE, update.init(TREE)
    for k, slope in enumerate(slopes):
        direction = jax.tree.map(lambda leaf, s=slope: jnp.full_like(leaf, s), tree)
        tree, memory = update.step(direction, memory, tree, k)
    return tree


def test_the_policy_moves_as_adamw_with_warm_up_decay_and_clipping_says():
    settings = Settings(
        method=Method.DPO, steps=6, rate=0.1, schedule=Schedule.COSINE, warmup=2,
        weight_decay=0.5, max_grad_norm=1.0,
    )  # fmt: skip
    slopes = [3.0, 0.01, -2.0, 0.1, 0.3, 1.0]
    found = moved_by(method.policy_update(settings, settings.steps), slopes)
    expected = {"kernel": 3.0, "bias": 1.0}
    for name in expected:
        x, m, v = expected[name], 0.0, 0.0
        for k, slope in enumerate(slopes):
            g = slope / max(1.0, abs(slope) * 8**0.5)  # eight numbers, all alike
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            rate = 0.1 * (k / 2 if k < 2 else 0.5 * (1 + np.cos(np.pi * (k - 2) / 4)))
            step = (m / (1 - 0.9 ** (k + 1))) / ((v / (1 - 0.999 ** (k + 1))) ** 0.5 + 1e-8)
            x -= rate * (step + (0.5 * x if name == "kernel" else 0))
        np.testing.assert_allclose(found["up"][name], x, rtol=1e-6)
    np.testing.assert_array_equal(found["norm"]["scale"], found["up"]["bias"])


def test_clipping_is_that_of_optax():
    ours = moved_by(Clipped(FromOptax(optax.adam, 0.1), 1.0), [3.0, 0.1, -2.0])
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    theirs, memory = TREE, chain.init(TREE)
    with jax.numpy_dtype_promotion("standard"):
        for slope in [3.0, 0.1, -2.0]:
            direction = jax.tree.map(lambda leaf, s=slope: jnp.full_like(leaf, s), theirs)
            change, memory = chain.update(direction, memory, theirs)
            theirs = optax.apply_updates(theirs, change)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)


def test_schedules_end_with_the_run_whatever_the_moves_of_a_step():
    settings = Settings(steps=10, warmup=2, schedule=Schedule.LINEAR, rate=0.4, epochs=3,
                        policy_step=PolicyStep.PPO)  # fmt: skip
    rate = method.policy_step(settings).update.numbers[0]
    assert [float(rate(k)) for k in (0, 3, 6, 18, 30)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])
    rlhf = dataclasses.replace(settings, method=Method.RLHF, policy_updates=20)
    assert float(method.policy_step(rlhf).update.numbers[0](60)) == pytest.approx(0)
    assert float(method.reward_update(rlhf).numbers[0](10)) == pytest.approx(0)
    with pytest.raises(ValueError, match="warmup is 10, and the run has 10 steps; fewer are"):
        Settings(steps=10, warmup=10)


@pytest.mark.slow
def test_every_option_of_training_runs_as_typed_and_from_a_file(model, files, tmp_path):
    """The same options on the command line, in a TOML file, and from Python: the same model."""
    words = {"method": "dpo", "steps": 4, "batch": 4, "log-every": 2, "rate": 0.01,
             "schedule": "cosine", "warmup": 1, "weight-decay": 0.1, "max-grad-norm": 0.5,
             "accumulate": 2, "dtype": "bfloat16", "scale": 1.0}  # fmt: skip
    places = {"model": str(model), "demos": str(files[0]), "prefs": str(files[1])}
    typed = [word for name, value in (places | words).items() for word in (f"--{name}", str(value))]
    typed += ["--targets", "query", "--targets", "down"]
    toml = tmp_path / "run.toml"
    content = places | words | {"targets": ["query", "down"]}
    toml.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in content.items()))
    outs = [tmp_path / name for name in ("typed", "file", "python")]
    logs = ["--tensorboard", str(tmp_path / "board")]
    assert run("align", *typed, "--out", str(outs[0]), *logs).exit_code == 0
    assert run("align", "--config", str(toml), "--out", str(outs[1])).exit_code == 0
    asked = options.from_file(Align, toml)
    asked["out"] = outs[2]
    assert alignment.align(Align(**asked))
    made = [(out / "model.safetensors").read_bytes() for out in outs]
    assert made[0] == made[1] == made[2] != (model / "model.safetensors").read_bytes()
    assert {name for name, _, _ in logged(tmp_path / "board")} >= {"KL", "accuracy", "loss"}


# --- limits ------------------------------------------------------------------------------------


def test_sft_is_never_ended_by_its_divergence(model, files):
    state = dataclasses.make_dataclass("State", ["x", "y"])(1, 2)

    def ended(kl, **changes):
        return Monitor(given(model, files, **changes), lambda line: None)(2, state, {"KL": kl})

    assert not ended(1e6, method=Method.SFT)
    assert ended(float("nan"), method=Method.SFT)
    assert ended(101.0, method=Method.DPO)
    assert ended(6.0, method=Method.DPO, divergence=5.0)
    long = given(model, files, method=Method.DPO)
    drawing = dataclasses.replace(long.policy.drawing, new=200)
    long = long._replace(policy=dataclasses.replace(long.policy, drawing=drawing))
    assert not Monitor(long, lambda line: None)(2, state, {"KL": 390.0})
    assert Monitor(long, lambda line: None)(2, state, {"KL": 410.0})
    with pytest.raises(ValueError, match="--divergence has no effect here: it is for all methods"):
        Settings(method=Method.SFT, divergence=5.0)
    assert SFT(model=model, demos=files[0], out=model / "o").as_align().divergence is None


# --- logs, and options that changed ------------------------------------------------------------


def logged(folder: pathlib.Path) -> list[tuple[str, int, float]]:
    """Name, step and value of all that a folder for TensorBoard holds."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for file in sorted(folder.iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            at += 16 + length
    return found


def test_what_is_logged_reaches_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    call = report.TensorBoard(tmp_path)
    assert call(3, None, {"step": 3.0, "reward accuracy": 0.5}) is None
    call(6, None, {"step": 6.0, "reward accuracy": 0.75})
    call.close()
    assert logged(tmp_path) == [("reward_accuracy", 3, 0.5), ("reward_accuracy", 6, 0.75)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rlhf", "spin", "aihf"])
def test_callbacks_count_the_steps_of_all_phases(model, files, name):
    changes = {} if name == "rlhf" else {"rounds": 2}
    seen = []
    task = given(model, files, method=Method(name), **changes)
    session.train(task, None, callbacks=[lambda step, state, row: seen.append(step)])
    assert seen == list(range(2, 17 if name == "aihf" else 9, 2))


def test_changed_options_are_told_in_a_sentence(tmp_path):
    asked = Align(model=tmp_path, out=tmp_path / "o", method=Method.DPO)
    file = tmp_path / "options.json"
    assert resumable.changed(asked, file) == []
    again = dataclasses.replace(asked, out=tmp_path / "other")
    assert resumable.changed(again, file) == []
    other = dataclasses.replace(asked, rate=1e-3, targets=("query",))
    (told,) = resumable.changed(other, file)
    assert told.startswith("Options changed since this run began: rate was 0.0001, and is 0.001; ")
    assert told.endswith("; targets was –, and is query.")


def test_a_folder_is_removed_at_once(tmp_path, monkeypatch):
    """Killed between the two, its name is free; the next call removes what was left."""
    state = tmp_path / "out.run"
    for deep in (state / "phase-1" / "4", folders.part_of(state) / "phase-1"):
        deep.mkdir(parents=True)
    with monkeypatch.context() as patched:
        real = shutil.rmtree
        patched.setattr(shutil, "rmtree", lambda *args, **named: named and real(*args, **named))
        folders.remove(state)
    assert [path.name for path in tmp_path.iterdir()] == [".out.run.bilevel-part"]
    folders.remove(state)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_resumed_run_tells_what_changed(model, files, tmp_path, monkeypatch):
    words = ["align", "--model", str(model), "--prefs", str(files[1]), "--method", "dpo"]
    words += ["--steps", "4", "--batch", "2", "--log-every", "2", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(Monitor, "__call__", lambda *_: signal.raise_signal(signal.SIGINT))
    assert run(*words).exit_code == 130
    monkeypatch.undo()
    refused = run(*words, "--beta", "0.2")
    assert refused.exit_code == 2
    assert "Options changed since this run began: beta was 0.1, and is 0.2." in refused.output
    assert "is of another problem" in refused.output
    found = run(*words, "--rate", "0.01")
    assert found.exit_code == 0, found.output
    assert "Options changed since this run began: rate was 0.0001, and is 0.01." in found.output
    assert "resumed from step 2; 2 steps were left to do" in found.output
