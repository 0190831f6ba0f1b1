"""Small tokenizers of the three common kinds, and folders that hold them."""

import json

import pytest

tokenizers = pytest.importorskip("tokenizers")
decoders, models, normalizers = tokenizers.decoders, tokenizers.models, tokenizers.normalizers
splitters, processors, trainers = (
    tokenizers.pre_tokenizers, tokenizers.processors, tokenizers.trainers)  # fmt: skip

SAID = ["hello world, hello there", "the world is there; hello again 2 + 2 = 4", "yes no held low"]


def begin_with(core, token, ending=""):
    """What llama-like folders have: a token before every text."""
    found = [(one, core.token_to_id(one)) for one in (token, ending) if one]
    return processors.TemplateProcessing(
        single=f"{token} $A {ending}".strip(), special_tokens=found
    )


def byte_level(merges=True, special=("<s>", "</s>"), begin="<s>"):
    """As GPT-2, Llama-3 and Qwen have it; without merges the ids depend on no training."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = splitters.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320 if merges else 256 + len(special),
        special_tokens=list(special),
        initial_alphabet=splitters.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SAID, trainer)
    trimmed = processors.ByteLevel(trim_offsets=True)
    core.post_processor = (
        processors.Sequence([trimmed, begin_with(core, begin)]) if begin else trimmed
    )
    return core


def sentencepiece():
    """As Llama-2 and Mistral have it: a space before every text, and bytes for unknown letters."""
    core = tokenizers.Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # fmt: skip
    trainer = trainers.BpeTrainer(
        vocab_size=80, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    core.train_from_iterator(SAID, trainer)
    settings = json.loads(core.to_str())
    vocabulary = settings["model"]["vocab"]
    for i in range(256):
        vocabulary.setdefault(f"<0x{i:02X}>", len(vocabulary))
    settings["model"] |= {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    core = tokenizers.Tokenizer.from_str(json.dumps(settings))
    core.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])  # fmt: skip
    core.post_processor = begin_with(core, "<s>")
    return core


def word_piece():
    """As BERT has it."""
    core = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = splitters.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    core.train_from_iterator(SAID, trainer)
    core.post_processor = begin_with(core, "[CLS]", "[SEP]")
    return core


def write(folder, core, *, generation=None, config=None, **settings):
    """A folder with tokenizer files."""
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    files = {"tokenizer_config": settings, "generation_config": generation, "config": config}
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA3_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>",
)  # fmt: skip


def llama3(folder, template=LLAMA3, generation=None, **files):
    """Letters, the special tokens of Llama-3 and its template."""
    core = byte_level(merges=False, special=LLAMA3_TOKENS, begin="<|begin_of_text|>")
    told = {"bos_token": LLAMA3_TOKENS[0], "eos_token": LLAMA3_TOKENS[1]}
    return write(folder, core, generation=generation, chat_template=template, **told, **files)
