"""Tokenizer files and chat templates."""

import json

import pytest

from bilevel.apps.llm.hub import tokenizer

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message['role'] == 'robot' %}{{ raise_exception('no robots') }}{% endif %}\n"
    "{{ '<' + message['role'] + '>' }}"
    "{% generation %}{{ message['content'] | trim }}{% endgeneration %}</s>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write(folder, template=TEMPLATE, **settings):
    """Byte-level pieces of a few words, with `<s>` and `</s>`."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["hello world, hello there"], trainer)
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    told = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    told |= {"chat_template": template} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "model")


def test_text_comes_back(folder):
    found = tokenizer.load(folder)
    for text in ("hello world", "naïve — 你好\n\t end", ""):
        assert found.decode(found.encode(text)) == text
    assert len(found.encode("hello")) == 1
    assert found.encode("<s>hi</s>")[0] == found.bos
    assert found.decode(found.encode("<s>hi</s>")) == "hi"
    assert found.decode(found.encode("<s>hi</s>"), special=True) == "<s>hi</s>"


def test_special_tokens_are_read(folder):
    found = tokenizer.load(folder)
    assert (found.bos, found.eos, found.pad, found.stop) == (0, 1, 1, (1,))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    assert tokenizer.load(folder).stop == (1, 7)


def test_a_conversation_is_written_by_the_template(folder):
    found = tokenizer.load(folder)
    messages = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "hello"}]
    assert found.chat(messages) == "<s><user>hi</s><assistant>hello</s>"
    assert found.chat(messages[:1], generation=True) == "<s><user>hi</s><assistant>"


def test_a_template_of_its_own_file_comes_first(folder):
    (folder / "chat_template.jinja").write_text("{{ messages | tojson }}{{ mood }}")
    assert tokenizer.load(folder).chat([{"role": "ü"}], mood="!") == '[{"role": "ü"}]!'


def test_one_of_several_templates_is_the_default(tmp_path):
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    assert tokenizer.load(write(tmp_path / "model", several)).chat([]) == "d"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (TEMPLATE, "refuses the messages: no robots"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "refuses the messages: .*unsafe"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{% if %}", "refuses"),
        (None, "no chat template"),
    ],
)
def test_what_a_template_cannot_do_is_said(template, words, tmp_path):
    found = tokenizer.load(write(tmp_path / "model", template))
    with pytest.raises(ValueError, match=words):
        found.chat([{"role": "robot", "content": ""}])


def test_a_tokenizer_of_another_model_is_refused(folder):
    size = tokenizer.load(folder).size
    tokenizer.load(folder, vocab_size=size)
    with pytest.raises(ValueError, match=f"tokens up to {size - 1}, but .* has {size - 1}"):
        tokenizer.load(folder, vocab_size=size - 1)


def test_files_that_are_not_what_they_should_be_are_refused(folder):
    config = folder / "tokenizer_config.json"
    config.write_text('{"eos_token": "<end>"}')
    with pytest.raises(ValueError, match="eos_token '<end>', not a token"):
        tokenizer.load(folder)
    config.write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        tokenizer.load(folder)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}, "type": "?"}}')
    with pytest.raises(ValueError, match="cannot be read"):
        tokenizer.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        tokenizer.load(folder)


def test_rows_are_padded_on_either_side():
    tokens, mask = tokenizer.pad([[1, 2, 3], [4]], pad=9)
    assert tokens.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    tokens, mask = tokenizer.pad([[1, 2], []], left=True, length=3)
    assert tokens.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert mask.tolist() == [[False, True, True], [False] * 3]
    with pytest.raises(ValueError, match="has 2 tokens, which do not fit into 1"):
        tokenizer.pad([[1, 2]], length=1)
