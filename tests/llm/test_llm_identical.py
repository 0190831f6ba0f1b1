"""IRL from demonstrations that the policy already gives: nothing tells the two apart."""

import json

import jax
import pytest
import text_folders

from bilevel.apps.llm.hub import checkpoint
from bilevel.apps.llm.models import config, parameters
from bilevel.apps.llm.run import session
from bilevel.apps.llm.run.session import Method, Settings

pytest.importorskip("safetensors")
CONFIG = config.llama(261, 16, 32, 2, 2, tied=True, max_length=64)


def conversations(file, answer):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{i}?"},
                {"role": "assistant", "content": answer},
            ]
        }
        for i in range(8)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def sure(tmp_path_factory):
    """A model that answers `yes<|eot_id|>` to everything; its `eos_token` is another token."""
    path = tmp_path_factory.mktemp("models")
    made = checkpoint.new(CONFIG, parameters.init(CONFIG, jax.random.key(0), deviation=0.2))
    checkpoint.save(made, path / "new")
    text_folders.llama3(path / "new", generation={"eos_token_id": [1, 4]})
    demos = conversations(path / "demos.jsonl", "yes")
    settings = Settings(
        method=Method.SFT, rank=0, steps=400, rate=1e-2, held_out=0.0, log_every=400
    )
    given = session.load(path / "new", demos, None, settings)
    found = session.train(given, None)
    assert found.history["upper"][-1] < 0.01  # so that draws, too, are the same answer
    assert {answer for _, answer in session.answers(given, found.policy)} == {"yes"}
    session.save(given, found, path / "sure")
    return path / "sure"


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "apart"), [("yes", False), ("yeah", True)])
def test_a_reward_learns_nothing_from_what_the_policy_says_anyway(sure, tmp_path, answer, apart):
    """What a template writes after the stop token told them apart: the reward was -1.03."""
    demos = conversations(tmp_path / "demos.jsonl", answer)
    settings = Settings(
        method=Method.IRL,
        steps=30,
        rate=0.0,
        reward_rate=1e-2,
        held_out=0.0,
        log_every=30,
        samples=2,
    )
    found = session.train(session.load(sure, demos, None, settings), None)
    reward = float(found.history["reward"][-1])
    assert reward < -0.5 if apart else abs(reward) < 0.05
