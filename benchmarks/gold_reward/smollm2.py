"""The same with SmolLM2-135M-Instruct: LoRA adapters of its last layers, and a learned head.

Nothing here is chosen by trials, which would take hours: sizes and settings were declared before
the first run.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gold_reward.feedback import BETA, Base, Sizes, scores, world
from benchmarks.gold_reward.runs import Book, rounded
from benchmarks.gold_reward.settings import SMOL, SMOL_SEEDS, SMOL_WAYS
from benchmarks.gold_reward.ways import Reached, Setting, Way, adam, run, step_of
from bilevel.apps.llm.data import encode
from bilevel.apps.llm.hub import checkpoint, tokenizer
from bilevel.apps.llm.methods.aihf import AIHF, IRL, Finish
from bilevel.apps.llm.methods.direct import DPO
from bilevel.apps.llm.methods.sft import SFT
from bilevel.apps.llm.models.sampling import Drawing
from bilevel.apps.llm.models.trainable import Adapter
from bilevel.apps.llm.policies import model
from bilevel.apps.llm.policies.policy import generate
from bilevel.apps.llm.rewards.reward import Head

GOLD = "sentiment"
WHEN = ("Yesterday", "Last week", "This morning", "On Sunday", "In the end", "At work", "Later")
WHO = ("my neighbour", "the doctor", "our teacher", "my sister", "the driver", "an old man")
DID = ("said that it was", "told us about the", "wrote that she felt", "called it a", "was very")
NEW = 8  # tokens of a response
ADAPTER = Adapter(rank=8, layers=4)  # of the policy, and another one of the reward
SIZES = Sizes(64, 64, 48, 32, answers=4, tries=8, batch=16, prompts=8)
SETTING = Setting(rate=1e-3, reward_rate=1e-3, beta=0.5, decay=1e-4)
STEPS, LOOP, LAST = 40, 40, 10  # of SFT and DPO; of IRL and AIHF: in the loop, then on its reward


def _joint(s: Setting) -> dict:
    update, last = adam(s.reward_rate, LOOP), step_of(s.rate / 2, LAST)
    finish = Finish(LAST, s.beta, last)
    return {"step": step_of(s.rate, LOOP), "x_update": update, "decay": s.decay, "finish": finish}


def _alone(name: str, how, **more) -> Way:
    """Looked at where it ends."""
    return Way(name, how, steps=STEPS, every=STEPS // 4, begins=3 * STEPS // 4, **more)


def _together(name: str, how, **more) -> Way:
    return Way(name, how, beta=BETA, steps=LOOP, every=LAST, begins=LOOP, **more)


WAYS = {way.name: way for way in (
    _alone("SFT", lambda s: SFT(adam(s.rate, STEPS)), pairs=False),
    _together("IRL", lambda s: IRL(**_joint(s)), pairs=False),
    _alone("DPO", lambda s: DPO(adam(s.rate, STEPS)), after_sft=True),
    _together("AIHF", lambda s: AIHF(**_joint(s))),
)}  # fmt: skip


def base(folder: Path) -> Base:
    """The model of a folder, and beginnings of sentences as prompts."""
    loaded, text = checkpoint.load(folder, dtype=jnp.float32), tokenizer.load(folder)
    config, params = loaded.config, loaded.params
    drawing = Drawing(new=NEW, stop=text.stop)
    policy = model.Decoder(config, params, ADAPTER, drawing)
    rows = [encode.Row(text.encode(" ".join(words)), [], None) for words in product(WHEN, WHO, DID)]
    head = Head(policy.trunk(params, ADAPTER))
    trunk = ADAPTER.init(config, jax.random.key(3))
    start = head.init(jax.random.key(2), config.width, trunk=trunk)
    start["weight"] = jnp.zeros_like(start["weight"])

    def read(tokens, mask):
        pairs = zip(tokens, mask, strict=True)
        return [" ".join(text.decode(row[on]).split()) for row, on in pairs]

    prompts = model.prompt_batch(rows, pad_id=text.pad)
    y = ADAPTER.init(config, jax.random.key(1))
    return Base(policy, y, prompts, read, head, start, SIZES)


def everything(folder: Path, told: Callable[[str], object], file: Path = SMOL) -> None:
    """SFT and IRL on every seed, then the others; runs that the file holds are kept."""
    given, book = base(folder), Book(file)
    facts = book.kept.setdefault("facts", {}).setdefault(GOLD, {"base": {}, "expert": {}})
    for names in SMOL_WAYS:
        for seed in SMOL_SEEDS:
            keys = {name: {"gold": GOLD, "way": name, "seed": seed, "pairs": SIZES.pairs,
                           "setting": list(SETTING), "until": 1} for name in names}  # fmt: skip
            if all(book.find(**key) for key in keys.values()):
                continue
            feedback, sft = world(given, GOLD, seed), None
            said = generate(given.policy, given.params, feedback.prompts, jax.random.key(4))
            for name, rows in (("base", said), ("expert", feedback.demonstrations)):
                facts[name][str(seed)] = round(float(scores(given, GOLD, rows).mean()), 4)
            told(f"seed {seed}: base {facts['base'][str(seed)]}, "
                 f"expert {facts['expert'][str(seed)]}")  # fmt: skip
            for name in dict.fromkeys(("SFT", *names)):
                found = run(feedback, WAYS[name], SETTING, pairs=SIZES.pairs, key=seed, sft=sft,
                            until=1)  # fmt: skip
                sft = found if name == "SFT" else sft
                if name in keys:
                    _keep(book, keys[name], found, told)


def _keep(book: Book, key: dict, found: Reached, told: Callable[[str], object]) -> None:
    if book.find(**key) is None:
        book.add(**key, points=rounded(found.points))
    last = found.points[-1]
    told(f"{key['way']}, seed {key['seed']}: gold {last.gold:.3f} "
         f"± {np.std(found.scores) / np.sqrt(len(found.scores)):.3f}, KL {last.kl:.2f}, "
         f"{last.seconds:.0f} s")  # fmt: skip
