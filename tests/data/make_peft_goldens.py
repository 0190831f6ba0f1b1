"""Make peft_goldens.json: what PEFT writes and says of the adapters in llm_cases.py.

Run in an environment with torch, transformers, peft and safetensors, from the folder `tests`:

    python data/make_peft_goldens.py

Made with torch 2.13.0, transformers 5.24.0 and peft 0.21.2.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import llm_cases  # noqa: E402

MODULES = [name.rsplit(".", 1)[1] for name in llm_cases.ADAPTED]


def written(folder: Path, **settings) -> str:
    """The adapter_config.json of PEFT."""
    config = LoraConfig(
        r=llm_cases.RANK, lora_alpha=llm_cases.ALPHA, target_modules=MODULES,
        task_type="CAUSAL_LM", **settings,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    get_peft_model(base, config).save_pretrained(folder / "adapter")
    about = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = None
    about["target_modules"] = sorted(about["target_modules"])
    return json.dumps(about)


def logits(folder: Path, name: str) -> list:
    save_file(llm_cases.adapter_weights(name), folder / "adapter" / "adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="eager"
    )
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    with torch.no_grad():
        found = model(input_ids=torch.tensor(llm_cases.rows()[0][:1, :5])).logits
    return [[[round(float(v), 5) for v in row] for row in rows] for rows in found.numpy()]


if __name__ == "__main__":
    goldens = {}
    for name, settings in llm_cases.ADAPTERS.items():
        with tempfile.TemporaryDirectory() as made:
            llm_cases.write_folder("llama-v4", Path(made, "model"))
            about = written(Path(made), **settings)
            goldens[name] = {"settings": json.loads(about), "logits": logits(Path(made), name)}
    others = {
        "PiSSA": {"init_lora_weights": "pissa"},
        "OLoRA": {"init_lora_weights": "olora"},
        "DoRA": {"use_dora": True},
        "ranks": {"rank_pattern": {"q_proj": 2}},
        "alphas": {"alpha_pattern": {"q_proj": 2}},
        "saved": {"modules_to_save": ["lm_head"]},
        "bias": {"lora_bias": True},
    }
    goldens["others"] = {}
    for name, settings in others.items():
        with tempfile.TemporaryDirectory() as made:
            llm_cases.write_folder("llama-v4", Path(made, "model"))
            goldens["others"][name] = json.loads(written(Path(made), **settings))
    (HERE / "peft_goldens.json").write_text(json.dumps(goldens) + "\n")
