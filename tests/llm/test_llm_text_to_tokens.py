"""Where text becomes tokens: boundaries, beginnings, ends, and what templates see and may do."""

import json

import numpy as np
import pytest
import text_folders as folders

from bilevel.apps.llm.data import encode
from bilevel.apps.llm.data.jsonl import Demonstration, Pair, demonstrations
from bilevel.apps.llm.hub import chat_template, tokenizer

pytest.importorskip("jinja2")

USER = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "yes"}


def row(text, prompt, response, *, end=False, words=None, context=10**4):
    asked = Demonstration(prompt, response, None, 1, words or {})
    (found,) = encode.encode([asked], text, context=context, end=end, file="f", findings=None)
    return found


def spelled(text, ids):
    return text.decode(ids, special=True)


# --- a response continues its prompt -----------------------------------------------------------

WORDS = ["hello", "world", "there", "held", "low", "lower", "2", "+", "2", "=", "4", "yes", "no"]
WIDE = [*WORDS, "naïve", "你好", "🙂🙂", "  ", "\n", "a.", "\t"]
KINDS = {
    "byte-level": (folders.byte_level, WIDE),
    "sentencepiece": (folders.sentencepiece, WIDE),
    "word piece": (folders.word_piece, WORDS),  # it keeps no spaces
}


@pytest.fixture(params=KINDS, scope="module")
def kind(request, tmp_path_factory):
    made, words = KINDS[request.param]
    path = folders.write(tmp_path_factory.mktemp("made"), made(), eos_token=None)
    return tokenizer.load(path), words


def test_a_response_continues_its_prompt(kind):
    """Every text, cut anywhere, comes back from the ids of both parts."""
    text, words = kind
    rng = np.random.default_rng(0)
    for _ in range(40):
        whole = " ".join(rng.choice(words, rng.integers(1, 7)))
        ids = text.encode(whole)
        assert text.decode(ids) == whole
        for cut in range(len(whole)):
            prompt, response = whole[:cut], whole[cut:]
            if not response.strip():
                continue
            before, after = text.encode_parts(prompt, response)
            assert before + after == ids
            assert prompt.startswith(text.decode(before).rstrip("�"))  # no letter of the response
            if before or text.begin:
                found = row(text, prompt, response)
                assert found.prompt == [*text.begin, *before] if before else list(text.begin)
                assert text.decode(found.prompt + found.response) == whole


def test_both_responses_of_a_pair_have_one_prompt(kind):
    text, _ = kind
    for prompt, *responses in (("2 + 2 =", " 4", " no"), ("hel", "lo", "d"), ("2 + ", "2", " 4")):
        pair = Pair(prompt, *responses, None, 1)
        (found,) = encode.encode_pairs([pair], text, context=99, end=False, file="f")
        assert found.chosen.prompt == found.rejected.prompt
        for side, response in zip(found, responses, strict=True):
            ids = text.encode(prompt + response)
            assert side.prompt + side.response == [*text.begin, *ids]


# --- beginnings --------------------------------------------------------------------------------


@pytest.fixture
def llama3(tmp_path):
    return tokenizer.load(folders.llama3(tmp_path / "model", generation={"eos_token_id": [1, 4]}))


PLAIN = [0, 93, 73, 87]  # transformers 5.24: tokenizer("yes").input_ids
PROMPT = [
    0, 2, 89, 87, 73, 86, 3, 203, 203, 44, 77, 4,
    2, 69, 87, 87, 77, 87, 88, 69, 82, 88, 3, 203, 203,
]  # fmt: skip
WHOLE = [*PROMPT, 93, 73, 87, 4]  # transformers 5.24: apply_chat_template


def test_text_begins_as_in_transformers(llama3):
    """Plain text by the post-processor, messages by the template; nothing begins twice."""
    assert encode.prompt_ids("yes", llama3) == PLAIN
    assert encode.prompt_ids([USER], llama3) == PROMPT
    assert row(llama3, "y", "es").prompt + row(llama3, "y", "es").response == PLAIN
    found = row(llama3, [USER], [SAID])
    assert (found.prompt, found.prompt + found.response) == (PROMPT, WHOLE)
    written = "<|begin_of_text|>yes"  # the text of a template, given as plain text
    assert encode.prompt_ids(written, llama3) == PLAIN
    assert row(llama3, written, "x").prompt == PLAIN


def test_a_post_processor_that_adds_nothing_adds_nothing(tmp_path):
    core = folders.byte_level(begin=None)
    text = tokenizer.load(folders.write(tmp_path / "m", core, bos_token="<s>", eos_token="</s>"))
    assert text.begin == ()
    assert encode.prompt_ids("hello", text) == text.encode("hello")
    assert row(text, "", "hello").prompt == [text.bos]  # something must predict the first token


def test_only_what_stands_before_a_text_begins_it(tmp_path):
    text = tokenizer.load(folders.write(tmp_path / "m", folders.word_piece()))
    assert spelled(text, encode.prompt_ids("hello world", text)) == "[CLS] hello world"


# --- ends --------------------------------------------------------------------------------------

TEMPLATES = {
    "as Llama-3": folders.LLAMA3,
    "the next header always": folders.LLAMA3.partition("{% if")[0]
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
    "a space after the end": folders.LLAMA3.replace("<|eot_id|>", "<|eot_id|> "),
    "eos at the end of all": folders.LLAMA3 + "{% if not add_generation_prompt %}"
    "<|end_of_text|>{% endif %}",
    "a prompt that opens a thought": folders.LLAMA3.replace(
        "\n\n{% endif %}", "\n\n<think>\n{% endif %}"
    ),
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_templated_response_ends_at_its_first_stop_token(template, tmp_path):
    folder = folders.llama3(tmp_path / "m", template, generation={"eos_token_id": [1, 4]})
    text = tokenizer.load(folder)
    for end in (True, False):
        found = row(text, [USER], [SAID], end=end)
        assert found.prompt == text.encode(text.chat([USER], generation=True))
        assert spelled(text, found.response) == "yes<|eot_id|>"


def test_a_thought_that_the_prompt_opens_is_not_opened_twice(tmp_path):
    template = TEMPLATES["a prompt that opens a thought"]
    text = tokenizer.load(folders.llama3(tmp_path / "m", template, {"eos_token_id": 4}))
    thought = SAID | {"content": "<think>\nso</think>yes"}
    found = row(text, [USER], [thought])
    assert spelled(text, found.prompt).endswith("<think>\n")
    assert spelled(text, found.response) == "so</think>yes<|eot_id|>"


def test_eos_is_appended_where_no_stop_token_stands(llama3):
    assert spelled(llama3, row(llama3, "a", "yes", end=True).response) == "yes<|end_of_text|>"
    for ended in ("yes<|eot_id|>", "yes<|end_of_text|>", "yes<|eot_id|>\n<|end_of_text|>"):
        found = row(llama3, "a", ended, end=True)
        assert found.response[-1] in llama3.stop
        assert not set(found.response[:-1]) & set(llama3.stop)
    assert spelled(llama3, row(llama3, "a", "yes").response) == "yes"


def test_an_appended_token_is_one_that_stops(tmp_path):
    """Not the tokenizer's eos where the model goes on after it."""
    text = tokenizer.load(folders.llama3(tmp_path / "m", generation={"eos_token_id": 4}))
    assert spelled(text, row(text, "a", "yes", end=True).response) == "yes<|eot_id|>"


@pytest.mark.parametrize(
    ("files", "stop"),
    [
        ({"generation": {"eos_token_id": [4, 1]}, "config": {"eos_token_id": 2}}, (1, 4)),
        ({"generation": {"eos_token_id": 4}}, (4,)),
        ({"generation": {}, "config": {"eos_token_id": [3, 4]}}, (3, 4)),
        ({"generation": {"eos_token_id": None}, "config": {"eos_token_id": 0}}, (0,)),
        ({}, (1,)),
    ],
)
def test_stop_tokens_come_from_the_first_file_that_names_them(files, stop, tmp_path):
    assert tokenizer.load(folders.llama3(tmp_path / "m", **files)).stop == stop


def test_stop_tokens_that_are_none_are_refused(tmp_path):
    folder = folders.write(tmp_path / "m", folders.byte_level())
    text = tokenizer.load(folder)
    assert row(text, "a", "b").response == text.encode("b")
    with pytest.raises(ValueError, match=r"names no token that ends .* into generation_config"):
        row(text, "a", "b", end=True)
    for wrong in ("</s>", [True], -1, [1.5]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(ValueError, match=r"generation_config\.json has eos_token_id"):
            tokenizer.load(folder)


# --- what a template sees ----------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "é"}}]
SEES = "{{ tools is none }} {{ documents is none }} {{ tools | tojson }}"


def test_a_template_sees_what_it_sees_in_transformers(tmp_path):
    text = tokenizer.load(folders.llama3(tmp_path / "m", SEES))
    assert text.chat([USER]) == "True True null"
    told = 'False True [{"type": "function", "function": {"name": "é"}}]'  # transformers 5.24
    assert text.chat([USER], tools=TOOLS) == told


def test_with_tools_the_template_of_that_name_is_taken(tmp_path):
    several = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    text = tokenizer.load(folders.llama3(tmp_path / "m", several))
    assert (text.chat([USER]), text.chat([USER], tools=TOOLS)) == ("d", "t")  # transformers 5.24


def test_a_line_tells_the_template_its_tools_and_words(tmp_path):
    template = "{% for t in tools or [] %}[{{ t['function']['name'] }}]{% endfor %}"
    template += "{{ mood }}" + folders.LLAMA3
    text = tokenizer.load(folders.llama3(tmp_path / "m", template))
    file = tmp_path / "rows.jsonl"
    lines = [
        {"messages": [USER, SAID], "tools": TOOLS, "chat_template_kwargs": {"mood": "!"}},
        {"messages": [USER, SAID], "tools": json.dumps(TOOLS)},
        {"messages": [USER, SAID], "tools": []},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    rows = encode.encode(demonstrations(file), text, context=999, end=True, file=file)
    plain = text.chat([USER], generation=True)
    for found, before in zip(rows, ("[é]!", "[é]", ""), strict=True):
        assert spelled(text, found.prompt) == before + plain
        assert spelled(text, found.response).startswith("yes<|eot_id|>")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{% if %}", "Expected an expression"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
        ("{{ raise_exception('first\nsecond') }}", "first second"),
        ({"a": "b"}, "chat templates 'a', and none is called 'default'"),
        (["a"], "chat templates none"),
        ({"default": 3}, "the chat template is of type int; text is needed"),
        (7, "the chat template is of type int"),
    ],
)
def test_errors_of_a_template_are_one_sentence_with_the_line(template, told, tmp_path):
    text = tokenizer.load(folders.llama3(tmp_path / "m", template))
    with pytest.raises(ValueError, match="f, line 1: ") as error:
        row(text, [USER], [SAID])
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert row(text, "a", "b").prompt  # plain text needs no template


BOMBS = {
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "one loop": "{% for a in range(10**6) %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(40) }}",
    "no end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "product": "{{ 'a' * 10**9 }}",
    "list": "{{ ([0] * 10**9) | length }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "sums": "{% set s = namespace(a='aa') %}{% for i in range(60) %}{% set s.a = s.a + s.a %}"
    "{% endfor %}",
    "joins": "{% set s = namespace(a='aa') %}{% for i in range(60) %}{% set s.a = s.a ~ s.a %}"
    "{% endfor %}",
    "width": "{{ 'a'.ljust(10**9) }}",
    "output": "{% set a = 'a' * 10**6 %}{% for i in range(99) %}{{ a }}{% endfor %}",
}


@pytest.mark.parametrize("template", BOMBS.values(), ids=BOMBS)
def test_a_template_that_would_not_end_is_ended(template, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_template, "ROUNDS", 10**4)
    text = tokenizer.load(folders.llama3(tmp_path / "m", template))
    with pytest.raises(ValueError, match=r"template refuses .*(more than|Range|recursion)"):
        text.chat([USER])


def test_loops_of_templates_keep_their_meaning(tmp_path):
    template = (
        "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ m['role'] ~ 1 }}{% endfor %}"
        "{% for m in nothing %}{% else %}none{% endfor %}"
        "{% for key, value in {'a': 1}.items() if value %}{{ key }}{% endfor %}"
        "{% for a in range(9) %}{% if a == 2 %}{% break %}{% endif %}{{ a }}{% endfor %}"
    )
    text = tokenizer.load(folders.llama3(tmp_path / "m", template))
    assert text.chat([USER, SAID]) == "1Falseuser12Trueassistant1nonea01"
