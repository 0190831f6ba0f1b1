"""Games with known answers, and bilevel programs from MPS and AUX files."""

import highspy
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run

import bilevel as bl
from bilevel import mip
from bilevel.apps import games
from bilevel.files import mps

MPS = """* the whole numbers of Moore and Bard: x = 2, y = 2
NAME moore
ROWS
 N cost
 L r1
 L r2
 L r3
 G r4
COLUMNS
 M1 'MARKER' 'INTORG'
 x cost -1 r1 -25
 x r2 1 r3 2
 x r4 2
 y cost -10 r1 20
 y r2 2 r3 -1
 y r4 10
 M2 'MARKER' 'INTEND'
RHS
 b r1 30 r2 10
 b r3 15 r4 15
BOUNDS
 UP b x 10
 UP b y 5
ENDATA
"""
NUMBERS = "N 1\nM 4\nLC 1\nLR 0\nLR 1\nLR 2\nLR 3\nLO 1\nOS 1\n"
NAMES = (
    "@NUMVARS\n1\n@NUMCONSTRS\n4\n@VARSBEGIN\ny 1.\n@VARSEND\n"
    "@CONSTRSBEGIN\nr1\nr2\nr3\nr4\n@CONSTRSEND\n@NAME\nmoore\n@MPS\nmoore.mps\n"
)


def files(tmp_path, program=MPS, follower=NUMBERS):
    paths = tmp_path / "p.mps", tmp_path / "p.aux"
    for path, text in zip(paths, (program, follower), strict=True):
        path.write_text(text)
    return tuple(map(str, paths))


def test_the_leader_of_a_duopoly_makes_twice_as_much():
    method = bl.methods.SOBA(0.1, y_update=0.4, v_update=0.4)
    result = bl.solve(games.duopoly(), method, jnp.zeros(()), jnp.zeros(()), steps=600)
    assert result.x == pytest.approx(4.5, abs=1e-4)
    assert result.y == pytest.approx(2.25, abs=1e-4)


def test_a_min_max_problem_is_solved_at_its_saddle():
    problem = games.min_max(lambda x, y: x**2 + 2 * x * y - y**2 + x)
    method = bl.methods.SOBA(0.1, y_update=0.4, v_update=0.4)
    result = bl.solve(problem, method, jnp.ones(()), jnp.ones(()), steps=400)
    assert result.x == pytest.approx(-0.25, abs=1e-4)  # x² + x² + x
    assert result.y == pytest.approx(-0.25, abs=1e-4)


PAYOFFS = games.Payoffs(np.array([[-1, 4], [-2, 3.0]]), np.array([[0, -5], [0, -3.0]]))


def test_the_defender_of_two_targets():
    found = games.commit(PAYOFFS)
    np.testing.assert_allclose(found.coverage, [0.6, 0.4], atol=1e-8)
    assert (found.target, found.value) == (1, pytest.approx(-1.8))
    attacked = PAYOFFS.attacker[:, 1] + found.coverage * (PAYOFFS.attacker @ [1, -1])
    np.testing.assert_allclose(attacked, found.attacker_value)  # indifferent


def test_a_quantal_attacker_is_met_by_the_best_coverage_of_a_grid():
    problem = games.quantal_response(PAYOFFS, 0.5)
    method = bl.methods.SOBA(0.05, y_update=1.0, v_update=1.0)
    result = bl.solve(problem, method, jnp.zeros(2), jnp.zeros(2), steps=1500)
    c = np.stack([np.linspace(0, 1, 10_001), np.linspace(1, 0, 10_001)], 1)
    attacked, defended = (c * t[:, 0] + (1 - c) * t[:, 1] for t in PAYOFFS)
    odds = np.exp(attacked / 0.5)
    best = c[np.argmax((odds / odds.sum(1, keepdims=True) * defended).sum(1))]
    coverage = np.exp(result.x) / np.exp(result.x).sum()
    np.testing.assert_allclose(coverage, best, atol=2e-3)


@pytest.mark.parametrize("follower", [NUMBERS, NAMES])
def test_moore_and_bard_from_files(tmp_path, follower):
    answer = mip.solve(games.read(*files(tmp_path, follower=follower)))
    assert answer.ending is mip.Ending.OPTIMAL
    np.testing.assert_allclose(answer.z, [2, 2], atol=1e-6)
    assert answer.value == pytest.approx(-22)


def test_the_command(tmp_path):
    found = run("mip", *files(tmp_path), "--out", str(tmp_path / "z.csv"))
    assert found.exit_code == 0
    for told in ("optimal", "leader    -22, bound -22", "x x = 2", "y y = 2"):
        assert told in found.output
    assert (tmp_path / "z.csv").read_text() == "column,level,value\nx,leader,2.0\ny,follower,2.0\n"
    found = run("mip", *files(tmp_path), "--out", str(tmp_path / "no" / "z.csv"))
    assert found.exit_code == 2
    assert found.output.startswith("bilevel mip: the answer cannot be written to")


FULL = """NAME full
OBJSENSE
 MAX
ROWS
 N cost
 L a
 G b
 E c
 N other
COLUMNS
 x cost 1 a 1
 x b 1 c 1
 y cost 2 a 3
 M 'MARKER' 'INTORG'
 z b -1 c 2
 M 'MARKER' 'INTEND'
 w c 1
RHS
 rhs a 4 b 1
 rhs c 3 cost -7
RANGES
 rng a 2 b 5
 rng c -1
BOUNDS
 UP bnd x 9
 MI bnd y
 BV bnd z
 FR bnd w
ENDATA
"""


def test_mps_reads_as_highs_reads_it(tmp_path):
    path = tmp_path / "full.mps"
    path.write_text(FULL)
    found = mps.read_mps(path)
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.readModel(str(path))
    lp = highs.getLp()
    np.testing.assert_allclose(found.cost, lp.col_cost_)
    np.testing.assert_allclose(found.row_lower, lp.row_lower_)
    np.testing.assert_allclose(found.row_upper, lp.row_upper_)
    np.testing.assert_allclose(found.lower, lp.col_lower_)
    np.testing.assert_allclose(found.upper, lp.col_upper_)
    assert found.constant == lp.offset_
    assert found.maximize
    assert found.integer.tolist() == [k == highspy.HighsVarType.kInteger for k in lp.integrality_]


@pytest.mark.parametrize(
    ("program", "follower", "told"),
    [
        (MPS.replace("x r2 1 r3 2", "x r9 1"), NUMBERS, "p.mps, line 12: there is no row 'r9'"),
        (MPS.replace("x r2 1 r3 2", "x r2 1 r3"), NUMBERS, "line 12: one or two pairs"),
        (MPS.replace("x r2 1", "x r2 one"), NUMBERS, "line 12: 'one'; a finite number"),
        (MPS.replace("UP b x 10", "XX b x 10"), NUMBERS, "line 22: unknown bound 'XX'"),
        (MPS.replace("UP b x 10", "UP b v 10"), NUMBERS, "line 22: there is no column 'v'"),
        (MPS.replace(" L r2", " Q r2"), NUMBERS, "line 6: a row is one of N, L, G, E"),
        (MPS.replace("RHS\n", "RIGHT\n"), NUMBERS, "line 18: unknown section 'RIGHT'"),
        (MPS.replace("ENDATA\n", ""), NUMBERS, "no line ENDATA"),
        (MPS, NUMBERS.replace("LC 1", "LC 2"), "p.aux, line 3: 2; the columns are 0 to 1"),
        (MPS, NUMBERS.replace("LO 1\n", ""), "0 lines LO; 1 are needed"),
        (MPS, NUMBERS.replace("M 4", "M 5"), "M is 5, but lines LR are 4"),
        (MPS, NUMBERS.replace("OS 1", "OS 2"), "line 9: OS is 2"),
        (MPS, NUMBERS + "IB 3\n", "line 10: IB is of an interdiction file"),
        (MPS, NAMES.replace("r3", "r7"), "line 11: .* has no row 'r7'"),
        (MPS, NAMES.replace("y 1.", "q 1."), "line 6: a column of .* and a number"),
        (MPS, "", "is empty"),
    ],
)
def test_mistakes_in_files(tmp_path, program, follower, told):
    with pytest.raises(ValueError, match=told):
        games.read(*files(tmp_path, program, follower))
