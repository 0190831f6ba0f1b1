"""Make llm_goldens.npz: what transformers says of the tiny checkpoints in llm_cases.py.

Run in an environment with torch, transformers and safetensors, from the folder `tests`:

    python data/make_llm_goldens.py

Made with torch 2.13.0 and transformers 5.23.0.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from llm_cases import CASES, rows, write_folder  # noqa: E402


def logits_of(folder: Path, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Float32 logits, zero at padding; every tensor of the file must be used."""
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not told[kind], (kind, told[kind])
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
        found = model.eval()(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            position_ids=torch.tensor(positions),
        )
    return np.where(mask[..., None], found.logits.numpy(), 0).astype(np.float32)


if __name__ == "__main__":
    tokens, mask = rows()
    goldens = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            goldens[name] = logits_of(write_folder(name, Path(folder)), tokens, mask)
        print(name, np.abs(goldens[name]).max(), np.std(goldens[name][mask]))
    np.savez_compressed(HERE / "llm_goldens.npz", **goldens)
