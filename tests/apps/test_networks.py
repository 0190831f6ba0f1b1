"""Equilibria and optima of known networks, hypergradients, and files with mistakes."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from commands import run

from bilevel.apps import networks
from bilevel.apps.networks import Kind

DATA = Path(__file__).parents[1] / "data"
SIOUX = DATA / "sioux_falls_net.tntp", DATA / "sioux_falls_trips.tntp"
BRAESS = """from,to,capacity,free_flow_time,b,power
s,a,1,1e-8,1e9,1
a,t,1,50,0.02,1
s,b,1,50,0.02,1
b,t,1,1e-8,1e9,1
a,b,1,10,0.1,1
"""
HEAD = "<NUMBER OF ZONES> 2\n<NUMBER OF NODES> 3\n<FIRST THRU NODE> 1\n<END OF METADATA>\n"
LINK = "1\t3\t10\t1\t5\t0.15\t4\t0\t0\t1\t;\n3\t2\t10\t1\t5\t0.15\t4\t0\t0\t1\t;\n"
TRIPS = "<NUMBER OF ZONES> 2\n<END OF METADATA>\nOrigin 1\n 2 : 7.0;\n"


def braess(tmp_path, bridge=True):
    rows = BRAESS if bridge else BRAESS.replace("a,b,1,10,0.1,1\n", "")
    (tmp_path / "links.csv").write_text(rows)
    (tmp_path / "trips.csv").write_text("from,to,trips\ns,t,6\n")
    return networks.read(tmp_path / "links.csv", tmp_path / "trips.csv")


@pytest.mark.parametrize(("bridge", "cost"), [(False, 83), (True, 92)])
def test_braess(tmp_path, bridge, cost):
    network = braess(tmp_path, bridge)
    found = networks.equilibrium(network)
    np.testing.assert_allclose(found.pair_costs, [cost], atol=1e-6)
    best, tolls = networks.first_best_tolls(network)
    assert networks.total_time(network, best.flows) == pytest.approx(498, abs=1e-5)
    tolled = networks.equilibrium(network, networks.links_of(network, toll=tolls))
    assert networks.total_time(network, tolled.flows) == pytest.approx(498, abs=1e-5)


def test_sioux_falls():
    network = networks.read(*SIOUX)
    found = networks.equilibrium(network)
    assert found.gap < 1e-10
    assert networks.beckmann(networks.links_of(network), found.flows) == pytest.approx(
        4231335.287107, abs=1e-5
    )
    assert networks.total_time(network, found.flows) == pytest.approx(7480225.345, abs=2e-3)
    best, tolls = networks.first_best_tolls(network)
    assert networks.total_time(network, best.flows) == pytest.approx(7194256.053, abs=1e-3)
    links = networks.links_of(network, toll=tolls)
    tolled = networks.equilibrium(network, links, paths=best.paths)
    assert networks.total_time(network, tolled.flows) == pytest.approx(7194256.053, abs=1e-2)
    assert tolls @ tolled.flows == pytest.approx(14492931.3, abs=0.5)


@pytest.mark.parametrize("kind", [Kind.TOLLS, Kind.CAPACITIES])
def test_the_hypergradient_is_the_slope_of_full_equilibria(kind):
    network = networks.read(*SIOUX)
    only = ["6-8", "10-16", "13-24"]
    plan = networks.plan(network, kind, only, price=1000.0)
    evaluator = networks.Evaluator(plan)
    x, step = np.array([0.3, 0.5, 0.7]), 1e-4
    y = networks.start(evaluator, x)
    found = networks.problem(evaluator).hypergradient(jnp.asarray(x), y, None)
    for i, e in enumerate(step * np.eye(3)):
        slope = (evaluator.loss(x + e) - evaluator.loss(x - e)) / (2 * step)
        assert found[i] == pytest.approx(slope, rel=1e-4, abs=1)


def test_tolls_undo_braess(tmp_path):
    evaluator = networks.Evaluator(networks.plan(braess(tmp_path), Kind.TOLLS, ["a-b"], most=40.0))
    found = networks.improve(evaluator, steps=25, progress=False)
    assert found.value < 500  # 552 without
    assert evaluator.count <= 27


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Kind.TOLLS, Kind.CAPACITIES])
def test_the_hypergradient_beats_the_genetic_baselines_at_equal_cost(kind):
    network = networks.read(*SIOUX)
    some = ["6-8", "8-6", "7-8", "8-7", "9-10", "10-9", "10-16", "16-10"]
    only = [] if kind is Kind.TOLLS else some
    plan = networks.plan(network, kind, only, price=20000.0)
    evaluator = networks.Evaluator(plan)
    found = networks.improve(evaluator, steps=40, progress=False)
    for hybrid in (True, False):
        other = networks.genetic(
            networks.Evaluator(plan).loss,
            len(plan.links),
            evaluations=evaluator.count,
            hybrid=hybrid,
        )
        assert found.value < other.value


@pytest.mark.parametrize(
    ("links", "trips", "told"),
    [
        (HEAD + LINK.replace("\t0\t0\t1", "\t0\t1"), TRIPS, "net.tntp, line 5: 9 fields; a link"),
        (
            HEAD + LINK.replace("3\t2", "4\t2"),
            TRIPS,
            "line 6: init node is 4; the nodes are 1",
        ),
        (HEAD + LINK.replace("1\t3\t10", "1\t3\tx"), TRIPS, "line 5: capacity is 'x'"),
        (HEAD + LINK.replace("1\t3\t10", "1\t3\t0"), TRIPS, "line 5: capacity is 0"),
        (LINK, TRIPS, "line 1: .* before <END OF METADATA>"),
        (HEAD, TRIPS, "has no links"),
        (HEAD + LINK, TRIPS.replace("2 : 7.0", "2 7.0"), "trips.tntp, line 4: '2 7.0'"),
        (HEAD + LINK, TRIPS.replace("2 : 7", "3 : 7"), "line 4: the destination is 3; the zones"),
        (HEAD + LINK, TRIPS.replace("7.0", "-7"), "line 4: -7 trips"),
        (HEAD + LINK, TRIPS.replace("Origin 1\n 2", "Origin 2\n 1"), "no path from 2 to 1"),
    ],
)
def test_mistakes_in_files(tmp_path, links, trips, told):
    files = tmp_path / "net.tntp", tmp_path / "trips.tntp"
    for file, text in zip(files, (links, trips), strict=True):
        file.write_text(text)
    with pytest.raises(ValueError, match=told):
        networks.equilibrium(networks.read(*files))


def test_zones_are_not_passed_through(tmp_path):
    links = "1\t2\t10\t1\t1\t0\t1\t0\t0\t1\t;\n2\t3\t10\t1\t1\t0\t1\t0\t0\t1\t;\n"
    head = HEAD.replace("THRU NODE> 1", "THRU NODE> 3").replace("S> 2", "S> 3")
    (tmp_path / "n").write_text(head + links)
    (tmp_path / "t").write_text(TRIPS.replace("S> 2", "S> 3").replace("2 : 7", "3 : 7"))
    with pytest.raises(ValueError, match="no path from 1 to 3"):
        networks.equilibrium(networks.read(tmp_path / "n", tmp_path / "t"))


def test_the_command(tmp_path):
    braess(tmp_path)
    files = str(tmp_path / "links.csv"), str(tmp_path / "trips.csv")
    out, flows = tmp_path / "r.html", tmp_path / "f.csv"
    options = ("--design", "tolls", "--only", "a-b", "--most", "40", "--steps", "12")
    found = run("network", *files, *options, "--out", str(out), "--flows", str(flows))
    assert found.exit_code == 0
    for told in ("552.000", "498.000", "hypergradient", "genetic hybrid", f"written to {out}"):
        assert told in found.output
    assert out.read_text("utf-8").count("<figure") == 2
    assert flows.read_text().startswith("from,to,flow,cost\ns,a,")
    found = run("network", *files, "--design", "tolls", "--only", "a-q", "--out", str(out))
    assert found == (2, "bilevel network: 'a-q': there is no node 'q'.\n")
