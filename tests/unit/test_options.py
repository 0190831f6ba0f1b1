"""Options declared as fields of dataclasses: what is read off them, and what is refused."""

import enum
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest

from bilevel import options
from bilevel.apps.llm.run.settings import SFT, Align, Settings
from bilevel.cli.app import COMMANDS
from bilevel.options import Bounds


class Color(enum.Enum):
    DARK_RED = "dark-red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Painting(options.Settings):
    """Painting."""

    color: Color = Color.BLUE
    """Of the wall."""
    coats: Annotated[int, Bounds(least=1)] = 2
    """Layers of paint,
    one over the other."""


@dataclass(frozen=True, kw_only=True)
class House(Painting):
    """Build a house."""

    plan: Path
    """Drawing of it."""
    area: Annotated[float, Bounds(above=0)] = 50.0
    share: Annotated[float | None, Bounds(least=0, most=1)] = None
    slope: Annotated[float, Bounds(above=0, most=0.9)] = 0.5
    rooms: Annotated[tuple[int, int] | None, Bounds(least=1)] = None
    names: tuple[str, ...] = ()
    large: bool = False


HOUSE = House(plan=Path("p"))


def test_a_field_tells_all_about_an_option():
    found = {option.name: option for option in options.options(House)}
    assert " ".join(found) == "plan area share slope rooms names large color coats"
    assert found["plan"].required
    assert found["plan"].default is MISSING
    assert found["plan"].about == "Drawing of it."
    assert found["coats"].about == "Layers of paint, one over the other."
    assert [found[name].group for name in ("plan", "coats")] == ["", "Painting"]
    assert found["share"].optional
    assert found["share"].kind is float
    assert found["color"].choices == ("dark-red", "blue")
    assert found["area"].flag == "--area"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"coats": 0}, "coats is 0; a whole number of at least 1 is needed."),
        ({"coats": 1.0}, "coats is 1.0; a whole number of at least 1 is needed."),
        ({"coats": True}, "coats is True; a whole number of at least 1 is needed."),
        ({"coats": None}, "coats is None; a whole number of at least 1 is needed."),
        ({"area": 0.0}, "area is 0.0; a number above 0 is needed."),
        ({"area": float("nan")}, "area is nan; a number above 0 is needed."),
        ({"area": float("inf")}, "area is inf; a finite number is needed."),
        ({"slope": 0.95}, "slope is 0.95; a number above 0 and at most 0.9 is needed."),
        ({"share": 1.1}, "share is 1.1; a number from 0 to 1 is needed."),
        ({"rooms": (3, 0)}, "rooms is '3,0'; two whole numbers of at least 1, such as 4,2, are"),
        ({"rooms": 3}, "rooms is 3; two whole numbers"),
        ({"color": "blue"}, "color is 'blue'; one of dark-red, blue is needed."),
        ({"large": 1}, "large is 1; true or false is needed."),
        ({"plan": "p"}, "plan is 'p'; a path is needed."),
    ],
)
def test_a_wrong_value_is_refused_when_the_object_is_made(changes, told):
    with pytest.raises(ValueError, match="needed") as refusal:
        replace(HOUSE, **changes)
    assert told in str(refusal.value)


def test_numbers_become_those_of_python():
    found = replace(HOUSE, coats=np.int64(3), area=2)
    assert (type(found.coats), type(found.area)) == (int, float)


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("coats", "3", 3),
        ("area", "1e2", 100.0),
        ("rooms", "4,2", (4, 2)),
        ("rooms", "4", (4, 1)),
        ("color", "dark-red", Color.DARK_RED),
        ("plan", "a/b", Path("a/b")),
    ],
)
def test_a_value_is_read_as_typed(name, typed, value):
    option = next(option for option in options.options(House) if option.name == name)
    assert option.parse(typed) == value


@pytest.mark.parametrize(
    ("name", "typed"), [("coats", "1.5"), ("coats", "0"), ("rooms", "1,2,3"), ("color", "BLUE")]
)
def test_a_wrong_value_is_refused_as_typed(name, typed):
    option = next(option for option in options.options(House) if option.name == name)
    with pytest.raises(ValueError, match=f"^--{name} is .* needed.$"):
        option.parse(typed)


def test_a_file_holds_values(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('plan = "p"\narea = 2\nrooms = [4, 2]\ncolor = "blue"\nnames = ["a"]')
    assert House(**options.from_file(House, path)) == replace(
        HOUSE, area=2.0, rooms=(4, 2), color=Color.BLUE, names=("a",)
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("coat = 3", "run.toml has an unknown key 'coat'. Did you mean 'coats'?"),
        ("zzz = 3", "run.toml has an unknown key 'zzz'. Known are plan, area"),
        ("coats = 1.5", "run.toml: coats is 1.5; a whole number of at least 1 is needed."),
        ('coats = "3"', "run.toml: coats is '3'; a whole number"),
        ("coats = true", "run.toml: coats is True; a whole number"),
        ('large = "yes"', "run.toml: large is 'yes'; true or false is needed."),
        ("names = [1]", "run.toml: names is '1'; a list of texts is needed."),
        ("names = 'one'", "run.toml: names is 'one'; a list of texts is needed."),
        ("[coats]\nx = 1", "run.toml: coats is {'x': 1}; a whole number"),
        ("coats = = 3", "run.toml is no TOML file: "),
    ],
)
def test_a_wrong_file_is_refused_with_the_key(line, told, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"run\.toml") as refusal:
        options.from_file(House, path)
    assert told in str(refusal.value)


def test_a_report_shows_values_as_they_are_typed():
    found = {name: (value, about) for name, value, about in options.rows(HOUSE)}
    assert found["plan"] == ("p", "Drawing of it.")
    assert found["color"] == ("blue", "Of the wall.")
    assert found["share"][0] == "–"


def test_the_docs_have_a_line_for_every_option():
    lines = options.markdown(House).splitlines()
    assert lines[2] == "| `--plan` | required | Drawing of it. |"
    assert "| `--color` | blue | Of the wall. One of dark-red, blue. |" in lines
    assert len(lines) == 2 + 9


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_is_documented(name):
    found = options.options(COMMANDS[name].settings)
    assert all(option.about.endswith(".") for option in found)
    assert all(option.kind in options.WORDS or option.choices for option in found)
    for option in found:  # how Cyclopts writes the choices
        if option.choices:
            names = tuple(one.name.lower().replace("_", "-") for one in option.kind)
            assert names == option.choices


def test_sft_takes_options_of_align_and_no_other():
    sft, align = ({option.name: option for option in options.options(s)} for s in (SFT, Align))
    assert sft.keys() < align.keys()
    for name in sft.keys() - {"demos"}:  # which sft requires
        assert sft[name] == align[name]


def test_an_option_without_effect_is_refused():
    with pytest.raises(ValueError, match="--clip has no effect here: it is for --policy-step ppo"):
        Settings(clip=0.1)
