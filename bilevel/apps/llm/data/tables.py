"""Files to records: JSONL, plain or compressed by gzip, and parquet."""

import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.apps.llm.data.bad_rows import Findings, LineRef
from bilevel.files.needs import needs

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
KINDS = {  # how other files begin
    b"PK\x03\x04": "a zip archive",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xfd7zXZ": "compressed by xz",
    b"BZh": "compressed by bzip2",
    b"SQLite format 3": "an SQLite database",
    b"\x93NUMPY": "a NumPy array",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
}
NAMES = {".csv": "a CSV table", ".tsv": "a TSV table", ".xlsx": "an Excel table"}
MOST_BYTES = 1 << 31  # of a file, unpacked
MOST_OF_A_LINE = 1 << 26
WANTED = "JSONL, one object a line, is needed (also compressed by gzip), or parquet"


class Record(NamedTuple):
    """The object of one line or row."""

    content: dict[str, Any]
    where: LineRef


def records(file: str | Path, findings: Findings) -> list[Record]:
    """The object of every line that is not blank.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, or without a line.
        ImportError: the file is parquet, and pyarrow is not installed.
    """
    file = Path(file)
    if file.is_dir():
        raise FileNotFoundError(f"{file} is not a file but a folder; {WANTED}.")
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file.")
    with file.open("rb") as opened:
        content = opened.read(MOST_BYTES + 1)
    if content.startswith(PARQUET):
        rows = enumerate(_parquet(content, file), 1)
        found = [Record(row, LineRef(file, number)) for number, row in rows]
    else:
        lines = enumerate(_plain(content, file).split(b"\n"), 1)
        at = ((LineRef(file, number), line) for number, line in lines)
        found = [one for one in findings.each(at, lambda one: _line(*one)) if one is not None]
    if not found and not findings.bad:
        raise ValueError(f"{file} holds no line.")
    return found


def _plain(content: bytes, file: Path) -> bytes:
    """JSONL as bytes."""
    if content.startswith(GZIP):
        try:
            with gzip.open(io.BytesIO(content)) as opened:
                content = opened.read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} is compressed by gzip, but damaged: {error}.") from error
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"{file} holds more than {MOST_BYTES >> 20} MiB of text; split it into several files."
        )
    for start, kind in KINDS.items():
        if content.startswith(start):
            raise ValueError(f"{file} is {kind}; {WANTED}.")
    if file.suffix.lower() in NAMES:
        raise ValueError(f"{file} is {NAMES[file.suffix.lower()]}; {WANTED}.")
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        raise ValueError(
            f"{file} is one JSON list; {WANTED}. Write each of its objects on a line of its own, "
            "for example with jq -c '.[]'."
        )
    return content


def _line(where: LineRef, line: bytes) -> Record | None:
    if len(line) > MOST_OF_A_LINE:
        raise where.wrong(
            f"{len(line) >> 20} MiB long; a line of at most {MOST_OF_A_LINE >> 20} is needed."
        )
    try:
        text = line.decode("utf-8-sig" if where.line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise where.wrong(
            f"byte {error.start + 1} is not UTF-8. Save the file in UTF-8."
        ) from error
    if not text.strip():
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise where.wrong(f"not JSON: {error}. One object a line is needed.") from error
    if not isinstance(record, dict):
        raise where.wrong(f"a JSON {kind(record)}; an object is needed.")
    return Record(record, where)


def _parquet(content: bytes, file: Path) -> list[dict[str, Any]]:
    """The rows of a table; what a row does not have is left out of it."""
    parquet = needs("pyarrow.parquet", extra="parquet", what="parquet files")
    try:
        table = parquet.read_table(io.BytesIO(content))
    except (OSError, ValueError) as error:  # what pyarrow raises comes from these two
        raise ValueError(f"{file} is a parquet file, but cannot be read: {error}") from error
    return [_without_nulls(row) for row in table.to_pylist()]


def _without_nulls(value: Any) -> Any:
    """A table has every key in every row."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def kind(value: Any) -> str:
    """The type of a JSON value, in words."""
    names = {dict: "object", list: "list", str: "text", bool: "truth value", type(None): "null"}
    if isinstance(value, list) and not value:
        return "list without entries"
    return names.get(type(value), "number")
