"""Methods that promise first derivatives only: every oracle of second order is out of order."""

import jax
import pytest
from cases import PROBLEMS, start

from bilevel import methods, oracles
from bilevel.problem import Batch

SECOND = (
    "hvp",
    "cross",
    "cross_transposed",
    "hessian",
    "dense_hessian",
    "dense_cross",
    "block_hessians",
    "block_crosses",
    "lower_products",
)
FIRST_ORDER = {
    "F2SA": lambda: methods.F2SA(),
    "F3SA": lambda: methods.F3SA(),
    "F2BA": lambda: methods.F2BA(),
    "F2BA order 4": lambda: methods.F2BA(order=4),
    "BOME": lambda: methods.BOME(),
    "BOME by values": lambda: methods.BOME(value_based=True),
    "VPBGD": lambda: methods.VPBGD(),
    "KwonDL": lambda: methods.KwonDL(),
    "KwonSL": lambda: methods.KwonSL(),
    "MEHA": lambda: methods.MEHA(),
    "BVFSM": lambda: methods.BVFSM(),
    "LuMei": lambda: methods.LuMei(),
    "LuMei by the theory": lambda: methods.LuMei(0.25, methods.TheorySolver(1.0, 1.0, 10.0)),
    "KornowskiEq": lambda: methods.KornowskiEq(),
    "DARTS by differences": lambda: methods.DARTS(radius=0.01),
}
SECOND_ORDER = {"DARTS": lambda: methods.DARTS(), "SOBA": lambda: methods.SOBA()}


class OutOfOrder(Exception):
    pass


@pytest.fixture
def first_order_only(monkeypatch):
    def refuse(*_, **__):
        raise OutOfOrder

    for name in SECOND:
        monkeypatch.setattr(oracles, name, refuse)


def step(method):
    case = PROBLEMS["nested"]()
    return jax.eval_shape(method.step, case.problem, start(method, case), Batch())


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_no_second_derivative_is_asked_for(name, first_order_only):
    method = FIRST_ORDER[name]()
    step(method)
    price = method.price(PROBLEMS["nested"]().problem)
    assert price.hvp == price.cross == price.cross_transposed == 0
    assert price.dense_hessian == price.dense_cross == 0


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_others_do_ask(name, first_order_only):
    with pytest.raises(OutOfOrder):
        step(SECOND_ORDER[name]())
