"""Entries of a JSON object read by their type: "no" is not true, and a size is within bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = 100_000_000  # of a size; no model comes near
REQUIRED: Any = object()


@dataclass(frozen=True)
class Values:
    """The entries of a file; each reader refuses another type in one sentence.

    Args:
        file: its name, for the sentence.
        owner: what needs the entries, such as "a llama model".
    """

    file: str
    entries: Mapping[str, Any]
    owner: str

    def whole(
        self, key: str, default: Any = REQUIRED, *, least: int = 1, most: int = LARGEST
    ) -> int:
        value = self._entry(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.refused(key, f"a whole number from {least} to {most} is needed")
        return value

    def number(self, key: str, default: Any = REQUIRED) -> float:
        """A number above zero that float32 holds."""
        value = self._entry(key, default)
        if type(value) not in (int, float) or not 0 < value <= 3e38:
            raise self.refused(key, "a number above 0, at most 3e38, is needed")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        if type(self._entry(key, default)) is not bool:
            raise self.refused(key, "true or false is needed")
        return self._entry(key, default)

    def text(self, key: str, default: Any = REQUIRED) -> str:
        if not isinstance(self._entry(key, default), str):
            raise self.refused(key, "a text is needed")
        return self._entry(key, default)

    def refused(self, key: str, needed: str) -> ValueError:
        return ValueError(f"{self.file} has {key} {told(self.entries.get(key))}; {needed}.")

    def _entry(self, key: str, default: Any) -> Any:
        value = self.entries.get(key, default)
        if value is REQUIRED:
            raise ValueError(f"{self.file} has no {key!r}, which {self.owner} needs.")
        return value


def told(value: Any) -> str:
    """A value in a sentence, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
