"""The other side of `benchmarks.llm_steps`: the same steps by transformers and by trl.

`python -m benchmarks.llm_torch FOLDER`, after `benchmarks.llm_jax` has written its checkpoints.
Plain: the model's own loss (SFT) or a few lines (DPO), its fused attention, fused AdamW, as
`transformers.Trainer` has by default. trl: `training_step` of `SFTTrainer` and `DPOTrainer` with
their default losses, without mixed precision and without rematerialisation.
"""

import functools
import json
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import tokenizers
import torch
import transformers
import trl
from torch.nn import functional as F

from benchmarks import turns
from benchmarks.llm_steps import BETA, FILES, RATE, Shapes, drawn


def joined(prompts: np.ndarray, said: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, of which those of the prompt count nothing."""
    tokens = torch.tensor(np.concatenate([prompts, said], axis=1)).long()
    labels = tokens.clone()
    labels[:, : prompts.shape[1]] = -100
    return tokens, labels


def logprobs(model, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of whole responses, from the scores that predict them."""
    at = int((labels[0] == -100).sum()) - 1
    scores = model(input_ids=tokens, use_cache=False, logits_to_keep=tokens.shape[1] - at).logits
    found = -F.cross_entropy(scores[:, :-1].transpose(1, 2), tokens[:, at + 1 :], reduction="none")
    return found.sum(dim=1)


def words(count: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer for the trainers to hold; the rows that they are given are tokens already."""
    names = {str(i): i for i in range(count)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="0"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="1", pad_token="0", unk_token="0"
    )


class Theirs:
    def __init__(self, folder: Path, shapes: Shapes):
        self.model, self.other = (
            transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
            for name in FILES
        )
        self.model.train()
        self.rows = {name: joined(*arrays) for name, arrays in drawn(shapes).items()}
        self.pairs = tuple(torch.cat(both) for both in zip(
            self.rows["chosen"], self.rows["rejected"], strict=True))  # fmt: skip
        with torch.no_grad():
            self.reference = logprobs(self.other, *self.pairs)
        self.update = torch.optim.AdamW(
            self.model.parameters(), RATE, weight_decay=0.01, fused=True
        )
        self.trainers = self._trainers(shapes)

    # --- transformers

    def sft(self, name: str) -> torch.Tensor:
        tokens, labels = self.rows[name]
        return self.model(input_ids=tokens, labels=labels, use_cache=False).loss

    def dpo(self) -> torch.Tensor:
        ratios = logprobs(self.model, *self.pairs) - self.reference
        chosen, rejected = ratios.chunk(2)
        return -F.logsigmoid(BETA * (chosen - rejected)).mean()

    def loss(self, name: str) -> float:
        with torch.no_grad():
            return float(self.dpo() if name == "DPO" else self.sft(name))

    def step(self, name: str) -> None:
        (self.dpo() if name == "DPO" else self.sft(name)).backward()
        self.move()

    def move(self) -> None:
        self.update.step()
        self.update.zero_grad(set_to_none=True)

    # --- trl

    def _trainers(self, shapes: Shapes) -> dict:
        given = {
            "output_dir": tempfile.gettempdir(),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
        }
        text = words(shapes.model["vocab_size"])
        shown = datasets.Dataset.from_list([{"prompt": "2 3", "completion": "4 5"}])
        pairs = datasets.Dataset.from_list([{"prompt": "2 3", "chosen": "4 5", "rejected": "6 7"}])
        sft = trl.SFTTrainer(
            self.model, trl.SFTConfig(**given), train_dataset=shown, processing_class=text
        )
        dpo = trl.DPOTrainer(
            self.model,
            self.other,
            trl.DPOConfig(beta=BETA, precompute_ref_log_probs=True, **given),
            train_dataset=pairs,
            processing_class=text,
        )
        for trainer in (sft, dpo):  # as its `train` does before the first step
            trainer.current_gradient_accumulation_steps = 1
        return {"SFT": sft, "SFT, no prompts": sft, "DPO": dpo}

    def inputs(self, name: str) -> dict[str, torch.Tensor]:
        """What the trainer's collator would make of the rows."""
        tokens, labels = self.pairs if name == "DPO" else self.rows[name]
        found = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if name != "DPO":
            return found | {"labels": labels}
        names = ("ref_chosen_logps", "ref_rejected_logps")
        reference = dict(zip(names, self.reference.chunk(2), strict=True))
        return found | {"completion_mask": (labels != -100).long(), **reference}

    def trl_loss(self, name: str) -> float:
        with torch.no_grad():
            return float(self.trainers[name].compute_loss(self.model, self.inputs(name)))

    def trl_step(self, name: str) -> None:
        self.trainers[name].training_step(self.model, self.inputs(name))
        self.move()


def main() -> None:
    out, folder = turns.quiet(), Path(sys.argv[1])
    torch.set_num_threads(1)
    theirs = Theirs(folder, Shapes(**json.loads((folder / "shapes.json").read_text())))
    cases = {}
    for name in theirs.trainers:
        cases[f"transformers, {name}"] = functools.partial(theirs.step, name)
        cases[f"transformers, {name}: loss"] = functools.partial(theirs.loss, name)
        cases[f"trl, {name}"] = functools.partial(theirs.trl_step, name)
        cases[f"trl, {name}: loss"] = functools.partial(theirs.trl_loss, name)
    turns.serve(cases, out)


if __name__ == "__main__":
    main()
