"""Text files that users bring: bounded in size, in UTF-8."""

from pathlib import Path

MOST_BYTES = 1 << 30


def read_text(file: Path, wanted: str, most: int = MOST_BYTES) -> str:
    """The text of a file.

    Args:
        wanted: what is needed, for the message, such as "a CSV table is needed".
        most: bytes that are read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is too large, or not UTF-8; the message names the line.
    """
    return decode(read_bytes(file, wanted, most), file, wanted)


def read_bytes(file: Path, wanted: str, most: int = MOST_BYTES) -> bytes:
    """The content of a file, as `read_text` reads it."""
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "is not a file"
        raise FileNotFoundError(f"{file} {kind}; {wanted}.")
    with file.open("rb") as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{file} holds more than {most >> 20} MiB; split it.")
    return content


def decode(content: bytes, file: Path, wanted: str) -> str:
    """The text that UTF-8 stands for."""
    if b"\0" in content:
        raise ValueError(f"{file} holds zero bytes, as no text in UTF-8 does; {wanted}.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8. "
            "Save the file in UTF-8."
        ) from error
