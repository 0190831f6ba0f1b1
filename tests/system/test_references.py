"""The entries of `references.bib` and what is read from them."""

import re
import sys

import pytest

from bilevel.methods import Paper, all_methods, references

OURS = [m for m in all_methods() if m.__module__.startswith("bilevel.")]


def test_an_entry_is_read():
    paper = references.paper("khanduri2021near")
    assert paper == Paper(
        "Khanduri, Zeng, Hong, Wai, Wang, Yang",
        "A near-optimal algorithm for stochastic bilevel optimization via double-momentum",
        "NeurIPS 2021",
        "2102.07367",
    )
    assert str(references.paper("nocedal2006numerical")) == (
        'Nocedal, Wright. "Numerical optimization". Springer 2006.'
    )
    assert references.bibtex("khanduri2021near").startswith("@inproceedings{khanduri2021near,\n")


def test_every_entry_is_read_and_used():
    file = references.__file__.replace("references.py", "references.bib")
    with open(file, encoding="utf-8") as lines:
        written = re.findall(r"^@\w+\{(.*),$", lines.read(), flags=re.MULTILINE)
    assert references.keys() == written == sorted(set(written))
    assert {m.paper for m in OURS} == set(written)
    assert all(m.reference().title for m in OURS)


def test_an_unknown_key_is_named():
    with pytest.raises(KeyError, match=r"references.bib has no entry 'nobody2000nothing'"):
        references.paper("nobody2000nothing")


def test_methods_that_say_so_are_experimental():
    """A text that speaks of recalling or reconstructing, and the status, go together."""
    told = {
        m.__name__
        for m in OURS
        if re.search(r"[Rr]ecalled|reconstruction", sys.modules[m.__module__].__doc__ or "")
    }
    assert told == {m.__name__ for m in OURS if m.status == "experimental"}
    assert {m.status for m in OURS} == {"stable", "experimental"}
