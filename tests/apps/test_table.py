"""Tables are read whole, or refused in a sentence that names line and column."""

import numpy as np
import pytest

from bilevel.files import read_table


def table(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_numbers_and_labels(tmp_path, separator):
    rows = [["a", "b", "kind"], ["1", "2.5", "x y"], ["-3e2", " 4 ", "w"]]
    t = table(tmp_path, "\r\n".join(map(separator.join, rows)))
    np.testing.assert_array_equal(t.numbers(["b", "a"]), [[2.5, 1], [4, -300]])
    assert t.categories("kind").codes.tolist() == [1, 0]
    assert t.categories("kind").names == ("w", "x y")
    assert t.others("kind") == ("a", "b")
    assert t.is_numeric("a")
    assert not t.is_numeric("kind")


def test_classes_that_are_numbers_are_in_order_of_size(tmp_path):
    found = table(tmp_path, "y\n10\n9\n10\n").categories("y")
    assert found.codes.tolist() == [1, 0, 1]
    assert found.names == ("9", "10")


def test_a_quoted_field_may_hold_lines_and_the_lines_after_it_are_counted(tmp_path):
    t = table(tmp_path, 'name,z\n"one\ntwo",1\nb,oops\n')
    with pytest.raises(ValueError, match=r"line 4, column 'z': 'oops'; a finite number is needed"):
        t.numbers(["z"])


def test_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"a": [1, 2], "b": [0.5, None]}), path)
    t = read_table(path)
    np.testing.assert_array_equal(t.numbers(["a"]), [[1], [2]])
    with pytest.raises(ValueError, match="line 2, column 'b': the value is missing"):
        t.numbers(["b"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,b\n", "no row"),
        ("a,b\n1,2\n1,2,3\n", "line 3: 3 fields; 2 are needed"),
        ("a,b\n1,2\n1\n", "line 3: 1 fields; 2 are needed"),
        ("a,\n1,2\n", "line 1: column 2 has no name"),
        ("a,a\n1,2\n", "line 1: two columns are named 'a'"),
        ("1,2\n3,4\n", "line 1: only numbers"),
        (b"a\n\xe4\n", "line 2: byte 0xe4 is not UTF-8"),
        ("a\n1\n".encode("utf-16"), "zero bytes"),
        (b"\x80\x04a\n", "line 1: byte 0x80 is not UTF-8"),
        ('a\n"x\n', "not CSV"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        table(tmp_path, content)


def test_a_field_that_is_missing_or_no_number_is_named(tmp_path):
    t = table(tmp_path, "a,b,c\n1,,x\n2,inf,\n")
    with pytest.raises(ValueError, match="line 2, column 'b': the value is missing"):
        t.numbers(["a", "b"])
    with pytest.raises(ValueError, match="line 3, column 'c': the value is missing"):
        t.categories("c")
    with pytest.raises(ValueError, match="has no column 'd'; it has 'a', 'b', 'c'"):
        t.column("d")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder; a CSV table is needed"):
        read_table(tmp_path)
