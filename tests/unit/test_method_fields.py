"""Fields that check themselves."""

import dataclasses

import pytest

from bilevel.methods import SOBA, StocBiO, all_methods
from bilevel.schedules import PolynomialCount

REQUIRED = {"AugmentedLagrangian": {"method": SOBA()}}
COUNTED = [
    (method, field)
    for method in all_methods()
    if method.__module__.startswith("bilevel.")
    for field in dataclasses.fields(method)
    if field.metadata.get("least") == 1
]


@pytest.mark.parametrize(("method", "name"), [(method, field.name) for method, field in COUNTED])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_a_count_is_a_whole_number_of_at_least_one(method, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; a whole number of at least 1"):
        method(**REQUIRED.get(method.__name__, {}), **{name: value})


@pytest.mark.parametrize(("method", "field"), COUNTED)
def test_a_count_is_absent_only_where_the_data_tell_it(method, field):
    settings = REQUIRED.get(method.__name__, {}) | {field.name: None}
    if field.default is None:
        method(**settings)
    else:
        with pytest.raises(ValueError, match=f"{field.name} is None; a whole number"):
            method(**settings)


def test_some_counts_may_grow():
    assert len(COUNTED) >= 30
    assert StocBiO(lower_steps=PolynomialCount(1 / 2)).lower_steps == PolynomialCount(1 / 2)
