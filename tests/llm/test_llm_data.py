"""JSONL files: what is read, what is refused and in which words, and how rows become arrays."""

import dataclasses
import gzip
import json
import sys

import numpy as np
import pytest

from bilevel.apps.llm.data import batches, encode
from bilevel.apps.llm.data import jsonl as data
from bilevel.apps.llm.data.bad_rows import Findings
from bilevel.apps.llm.data.encode import Row, RowPair
from bilevel.apps.llm.hub.tokenizer import Tokenizer


class Letters:
    """A tokenizer of single letters: id = code point."""

    def encode(self, text, add_special_tokens=False):
        places = [(i, i + 1) for i in range(len(text))]
        return type("Encoding", (), {"ids": [ord(c) for c in text], "offsets": places})


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}|\n{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
TEXT = Tokenizer(Letters(), TEMPLATE, {}, bos=1, eos=2, pad=0, stop=(2,), size=200)


def write(path, *lines):
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "rows.jsonl"


USER = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Yo"}


def words(ids):
    return "".join(map(chr, ids))


def test_plain_text_and_messages(file):
    pytest.importorskip("jinja2")
    write(
        file, {"prompt": "a b", "completion": " c"}, "", {"messages": [USER, SAID], "source": "x"}
    )
    rows = data.demonstrations(file)
    assert [row.line for row in rows] == [1, 3]
    plain, chat = encode.encode(rows, TEXT, context=99, end=True, file=file)
    assert (words(plain.prompt), words(plain.response), plain.source) == ("a b", " c\x02", None)
    assert (words(chat.prompt), words(chat.response)) == ("<u>Hi|\n<a>", "Yo|\x02")
    assert chat.source == "x"
    plain, _ = encode.encode(rows, TEXT, context=99, end=False, file=file)
    assert words(plain.response) == " c"


def test_ways_to_write_a_preference(file):
    """TRL's explicit and implicit prompts, and ultrafeedback's text beside whole conversations."""
    pytest.importorskip("jinja2")
    worse = SAID | {"content": "No"}
    write(
        file,
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [USER], "chosen": [SAID], "rejected": [worse]},
        {"chosen": [USER, SAID], "rejected": [USER, worse]},
        {"prompt": [USER], "chosen": "Yo", "rejected": "No"},
        {"prompt": "Hi", "chosen": [USER, SAID], "rejected": [USER, worse]},
        {"prompt": "Hi", "chosen": [SAID], "rejected": [worse]},
        {"prompt": [USER], "chosen": [USER, SAID], "rejected": [USER, worse]},
    )
    pairs = encode.encode_pairs(data.preferences(file), TEXT, context=99, end=False, file=file)
    assert words(pairs[0].chosen.response + pairs[0].rejected.response) == "bc"
    assert all(pair == pairs[1] for pair in pairs[2:])
    assert words(pairs[1].rejected.prompt + pairs[1].rejected.response) == "<u>Hi|\n<a>No|"


def test_ways_to_write_a_demonstration(file):
    write(
        file,
        {"messages": [USER, SAID]},
        {"prompt": [USER], "completion": [SAID]},
        {"prompt": "Hi", "completion": [SAID]},
        {"prompt": [USER], "completion": "Yo"},
    )
    rows = data.demonstrations(file)
    assert all(row[:2] == ([USER], [SAID]) for row in rows)


HUMAN = "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: So?\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (HUMAN + " I see", HUMAN + " I do not", HUMAN),  # hh-rlhf, at its last turn
        ("Q: 2 + 2? A: 4", "Q: 2 + 2? A: 5", "Q: 2 + 2? A:"),
        ("say hello", "say help", "say"),  # no word is cut
        ("Is it? Yes", "Is it? Yes and no", "Is it?"),
    ],
)
def test_texts_share_the_prompt_that_is_not_given(chosen, rejected, prompt, file):
    write(file, {"chosen": chosen, "rejected": rejected})
    (pair,) = data.preferences(file)
    assert pair.prompt == prompt
    assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (chosen, rejected)


def test_a_response_may_be_a_call_of_a_tool(file):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    write(file, {"messages": [USER, call]})
    assert data.demonstrations(file)[0].response == [call]


def test_gzip_is_read_whatever_it_is_called(tmp_path):
    line = json.dumps({"prompt": "a", "completion": "b"}).encode()
    for name in ("rows.jsonl.gz", "rows.jsonl"):
        (tmp_path / name).write_bytes(gzip.compress(line))
        assert data.demonstrations(tmp_path / name)[0].prompt == "a"
    (tmp_path / name).write_bytes(gzip.compress(line)[:-9])
    with pytest.raises(ValueError, match="damaged"):
        data.demonstrations(tmp_path / name)


GOOD = {"prompt": "a", "completion": "b"}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a", ', "not JSON"),
        ("[1]", "a JSON list; an object"),
        ('{"prompt": NaN, "completion": "b"}', '"prompt" is a number; text'),
        ({"prompt": "a"}, '"completion" is missing; the line has "prompt"'),
        ({"prompt": None, "completion": "b"}, '"prompt" is a null'),
        ({"prompt": "a", "completion": " \n"}, "is empty"),
        ({"prompt": "a", "completion": "b", "source": 3}, '"source" is a number'),
        ('{"prompt": "a", "completion": "\\ud800"}', "surrogate"),
        ({"messages": []}, "list without entries"),
        ({"messages": [USER]}, "by 'user'"),
        ({"messages": [USER, {"role": "assistant"}]}, 'message 2 of "messages" has no text'),
        ({"messages": ["hi"]}, "has a text as message 1"),
        (GOOD | {"messages": [USER, SAID]}, 'both "messages" and "prompt"'),
        (PAIR, "a preference"),
        ("[" * 100_000, "not JSON"),
        ({"prompt": [USER], "completion": [USER]}, "by 'user'"),
        ({"prompt": "x", "completion": [USER, SAID]}, "holds 2 messages; with a"),
        (GOOD | {"tools": [{}]}, '"tools" is for messages'),
        (GOOD | {"chat_template_kwargs": {"a": 1}}, '"chat_template_kwargs" is for messages'),
        ({"messages": [USER, SAID], "tools": "x"}, "text that is not JSON"),
        ({"messages": [USER, SAID], "tools": ["x"]}, "a list of objects"),
        ({"messages": [USER, SAID], "chat_template_kwargs": [1]}, "a list; an object"),
        ({"messages": [USER, SAID], "chat_template_kwargs": {"messages": 1}}, 'sets "messages"'),
    ],
)
def test_bad_demonstrations_are_refused_with_file_and_line(file, line, told):
    write(file, GOOD, "", line)
    with pytest.raises(ValueError, match="line 3: ") as error:
        data.demonstrations(file)
    assert told in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"prompt": "a", "chosen": "b"}, '"rejected" is missing'),
        ({"chosen": "b", "rejected": "c"}, '"prompt" is missing'),
        (PAIR | {"rejected": ""}, "is empty"),
        (PAIR | {"rejected": [SAID]}, "differ in kind"),
        (PAIR | {"chosen": 1, "rejected": 2}, '"chosen" is a number'),
        ({"chosen": [USER, SAID], "rejected": [SAID]}, "differ before their last message"),
        ({"chosen": [SAID], "rejected": [SAID | {"content": "x"}]}, '"prompt" is missing'),
        ({"chosen": HUMAN, "rejected": HUMAN + " I"}, 'the response in "chosen" is empty'),
        ({"prompt": "Ho", "chosen": [USER, SAID], "rejected": [USER, SAID]}, "holds 2 messages"),
    ],
)
def test_bad_preferences_are_refused_with_the_line(file, line, told):
    write(file, PAIR, line)
    with pytest.raises(ValueError, match="line 2: ") as error:
        data.preferences(file)
    assert told in str(error.value)


def test_wrong_encoding_and_files_without_lines(file, tmp_path):
    file.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xe4"}\n')
    with pytest.raises(ValueError, match="line 2: byte 13 is not UTF-8"):
        data.demonstrations(file)
    write(file, "", " ")
    with pytest.raises(ValueError, match="holds no line"):
        data.demonstrations(file)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        data.demonstrations(tmp_path)
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert data.demonstrations(file)[0].response == "b"


def test_all_bad_rows_are_told_at_once_or_left_out(file):
    write(file, "{", GOOD, {"prompt": 1}, PAIR, GOOD | {"prompt": "a" * 9})
    with pytest.raises(ValueError, match=r"line 1: .* 3 rows are bad \(lines 1, 3, 4\)"):
        data.demonstrations(file)
    found = Findings()
    rows = data.demonstrations(file, found)
    rows = encode.encode(rows, TEXT, context=9, end=True, file=file, findings=found)
    assert [words(row.prompt) for row in rows] == ["a"]
    assert [error.line for error in found.bad] == [1, 3, 4, 5]
    with pytest.raises(ValueError, match=r"4 rows are bad \(lines 1, 3, 4, 5\).*--skip-bad"):
        found.settle(file)
    found.settle(file, skip_bad=True)
    assert "4 rows are bad (lines 1, 3, 4, 5); left out. The first: " in found.notes[-1]


def test_keys_that_are_not_read_are_named_once(file):
    write(file, GOOD | {"score": 1, "id": 2}, GOOD | {"score": 3}, GOOD | {"score": 3})
    with pytest.warns(UserWarning, match=r'not read: "score" \(3 rows\), "id" \(1 row\)\.') as told:
        assert len(data.demonstrations(file)) == 3
    assert len(told) == 1


def test_pairs_that_are_equal_after_the_template_are_counted_and_left_out(file):
    pytest.importorskip("jinja2")
    both = {"prompt": [USER], "chosen": [SAID], "rejected": [SAID | {"content": " Yo"}]}
    write(file, PAIR, both, PAIR | {"chosen": "same", "rejected": "same"})
    text = dataclasses.replace(TEXT, template=TEMPLATE.replace("['content']", "['content']|trim"))
    pairs = data.preferences(file)
    with pytest.warns(UserWarning, match="2 pairs have two equal responses"):
        found = encode.encode_pairs(pairs, text, context=99, end=True, file=file)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        (b"PK\x03\x04...", "a.jsonl", "is a zip archive; JSONL"),
        (b"ARROW1", "a.arrow", "an Arrow file"),
        (b"\x28\xb5\x2f\xfd", "a.jsonl.zst", "compressed by zstd"),
        (b"prompt,completion\na,b\n", "a.csv", "a CSV table"),
        (b' [\n {"prompt": "a"}]', "a.json", r"one JSON list; JSONL.*jq -c"),
    ],
)
def test_files_of_other_kinds_are_named(content, name, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        data.demonstrations(tmp_path / name)


def test_parquet_is_read_like_lines(tmp_path):
    table, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tools = json.dumps([{"function": {"name": "f"}}])
    rows = [
        {"messages": [USER, SAID], "tools": tools, "source": None},
        {"messages": [USER, SAID | {"name": "x"}], "tools": None, "source": "s"},
    ]
    parquet.write_table(table.Table.from_pylist(rows), tmp_path / "rows.parquet")
    one, two = data.demonstrations(tmp_path / "rows.parquet")
    assert one == ([USER], [SAID], None, 1, {"tools": json.loads(tools)})
    assert two == ([USER], [SAID | {"name": "x"}], "s", 2, {})
    parquet.write_table(table.Table.from_pylist([{"prompt": "a"}]), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match='line 1: "completion" is missing'):
        data.demonstrations(tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match="a parquet file, but cannot be read"):
        data.demonstrations(tmp_path / "rows.parquet")


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "rows").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"parquet files need pyarrow, .*'bilevel\[parquet\]'"):
        data.demonstrations(tmp_path / "rows")


def test_what_does_not_fit_the_context_is_refused(file):
    write(file, GOOD, {"prompt": "abcd", "completion": "e"})
    rows = data.demonstrations(file)
    encode.encode(rows, TEXT, context=6, end=True, file=file)
    with pytest.raises(ValueError, match=r"line 2: the prompt has 4 tokens.*fit into 4"):
        encode.encode(rows, TEXT, context=4, end=True, file=file)
    with pytest.raises(ValueError, match=r"line 2: prompt and response have 4 \+ 2"):
        encode.encode(rows, TEXT, context=5, end=True, file=file)


def rows(n, length=3, source=None):
    return [Row([i + 1] * length, [100 + i], source) for i in range(n)]


def test_padding_marks_prompts_and_responses():
    found = batches.padded([Row([1], [2, 3], None), Row([4, 5], [6], None)], pad_id=9)
    np.testing.assert_array_equal(found.prompts, [[9, 1], [4, 5]])
    np.testing.assert_array_equal(found.prompt_mask, [[0, 1], [1, 1]])
    np.testing.assert_array_equal(found.responses, [[2, 3], [6, 9]])
    np.testing.assert_array_equal(found.response_mask, [[1, 1], [1, 0]])


def test_packing_keeps_every_sequence_apart_and_whole():
    some = [Row(list(range(1, n + 1)), [50 + n], None) for n in (1, 4, 2, 3, 5, 1)]
    found = batches.packed(some, 8)
    assert len(found.tokens) < len(some)
    seen = []
    for tokens, segments, response in zip(*found, strict=True):
        assert (np.diff(segments[segments > 0]) >= 0).all()
        for number in range(1, segments.max() + 1):
            here = segments == number
            seen.append((tokens[here & ~response].tolist(), tokens[response & here].tolist()))
    assert sorted(seen) == sorted((row.prompt, row.response) for row in some)
    with pytest.raises(ValueError, match="6 tokens, which do not fit into rows of 5"):
        batches.packed(some, 5)


def test_every_stretch_holds_sources_in_proportion():
    some = rows(60, source="a") + rows(20, source="b") + rows(20, source="c")
    order = batches.stratified(some, 0)
    assert sorted(map(str, order)) == sorted(map(str, some))
    for at in range(0, 100, 10):
        count = sum(row.source == "a" for row in order[at : at + 10])
        assert 5 <= count <= 7
    assert batches.stratified(some, 0) == order != batches.stratified(some, 1)


def test_a_split_shares_no_row_and_takes_of_every_source():
    some = rows(40, source="a") + rows(10, source="b")
    train, held = batches.split([RowPair(row, row) for row in some], 0.2, 0)
    assert len(held) == 10
    assert sum(pair.chosen.source == "b" for pair in held) == 2
    assert not {str(pair) for pair in train} & {str(pair) for pair in held}
    assert batches.split(rows(3), 0.0, 0)[1] == []


@pytest.mark.parametrize("length", [None, 9])
def test_batches_are_the_same_every_time_and_of_one_shape(length):
    made = batches.Batches(rows(20, length=3), 3, length=length, seed=1, epochs=2)
    one, two = list(made), list(made)
    assert len({tuple(leaf.shape for leaf in batch) for batch in one}) == 1
    assert len(one) == (12 if length is None else 6)
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    assert not np.array_equal(one[0][0], one[len(one) // 2][0])
    with pytest.raises(ValueError, match="cannot be made"):
        batches.Batches(rows(4), 5)
