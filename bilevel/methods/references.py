"""The papers of the methods, from `references.bib`."""

import functools
import importlib.resources
import re
from typing import NamedTuple


class Paper(NamedTuple):
    """The reference of a method."""

    authors: str  # last names, separated by commas
    title: str  # without a full stop
    venue: str  # with the year
    arxiv: str  # empty where there is none

    def __str__(self) -> str:
        where = f"{self.venue}, arXiv:{self.arxiv}" if self.arxiv else self.venue
        return f'{self.authors}. "{self.title}". {where}.'


def paper(key: str) -> Paper:
    """The paper of an entry.

    Raises:
        KeyError: there is no such entry, or a field is missing in it.
    """
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", bibtex(key), flags=re.MULTILINE))
    if missing := {"author", "title", "year"} - fields.keys():
        raise KeyError(f"the entry {key!r} of references.bib has no {', '.join(sorted(missing))}.")
    place = next((fields[f] for f in ("booktitle", "journal", "publisher") if f in fields), "")
    return Paper(
        authors=fields["author"].replace(" and ", ", "),
        title=fields["title"].strip("{}"),
        venue=f"{place} {fields['year']}".strip(),
        arxiv=fields.get("eprint", ""),
    )


def bibtex(key: str) -> str:
    """The BibTeX text of an entry.

    Raises:
        KeyError: there is no such entry.
    """
    if key not in _entries():
        raise KeyError(f"references.bib has no entry {key!r}.")
    return _entries()[key]


def keys() -> list[str]:
    """The keys of all entries."""
    return list(_entries())


@functools.cache
def _entries() -> dict[str, str]:
    text = (
        importlib.resources.files("bilevel.methods").joinpath("references.bib").read_text("utf-8")
    )
    found = re.findall(r"^(@\w+\{([^,\s]+),\n.*?^\})$", text, flags=re.MULTILINE | re.DOTALL)
    return {key: entry for entry, key in found}
