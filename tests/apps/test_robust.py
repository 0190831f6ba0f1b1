"""The learned second stage leads to first stages near the best of all."""

import numpy as np
import pytest

from bilevel.apps import robust
from bilevel.apps.robust.knapsack import enumerate_all


def test_the_worst_case_is_that_of_all_scenarios():
    k = robust.instance(0, items=5, deviations=2)
    x = np.array([0, 1, 0, 0, 0.0])
    values = [robust.second_stage(k, x, xi) for xi in robust.scenarios(k)]
    assert robust.worst_case(k, x) == pytest.approx(k.now @ x + min(values))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_within_three_per_cent_of_the_best(seed):
    k = robust.instance(seed)
    _, best = enumerate_all(k)
    chosen = robust.choose(k, robust.fit(k))
    assert chosen.value == pytest.approx(robust.worst_case(k, chosen.x))
    assert 0.97 * best <= chosen.value <= best + 1e-9
