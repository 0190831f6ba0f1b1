"""Braess's paradox, and a toll that undoes it.

Six travellers go from s to t. A new road a-b makes everybody slower: it should print 83 minutes
each without it, 92 with it, and with a toll on it a total near 498 again, as without the road.

    python examples/networks.py
    python examples/networks.py NET.tntp TRIPS.tntp --save map.png     # flows of your own network
"""

import argparse
import tempfile
from pathlib import Path

from bilevel.apps import networks

BRIDGE = "a,b,1,10,0.1,1\n"
LINKS = f"""from,to,capacity,free_flow_time,b,power
s,a,1,1e-8,1e9,1
a,t,1,50,0.02,1
s,b,1,50,0.02,1
b,t,1,1e-8,1e9,1
{BRIDGE}"""


def braess(bridge: bool) -> networks.Network:
    with tempfile.TemporaryDirectory() as folder:
        links, trips = Path(folder) / "links.csv", Path(folder) / "trips.csv"
        links.write_text(LINKS if bridge else LINKS.replace(BRIDGE, ""))
        trips.write_text("from,to,trips\ns,t,6\n")
        return networks.read(links, trips)


def show_braess() -> None:
    for bridge in (False, True):
        network = braess(bridge)
        found = networks.equilibrium(network)
        total = networks.total_time(network, found.flows)
        told = "with the bridge" if bridge else "without it"
        print(f"{told:16} {found.pair_costs[0]:.3f} each, {total:.1f} in all")
    plan = networks.plan(braess(True), networks.Kind.TOLLS, ["a-b"], most=40.0)
    evaluator = networks.Evaluator(plan)
    found = networks.improve(evaluator, steps=25, progress=False)
    toll = float(found.x[0] * plan.most[0])
    print(f"a toll of {toll:.1f}  {found.value:.1f} in all, after {evaluator.count} equilibria")


def show_map(links: Path, trips: Path, save: Path | None) -> None:
    network = networks.read(links, trips)
    now, (best, tolls) = networks.equilibrium(network), networks.first_best_tolls(network)
    for name, found in (("equilibrium", now), ("least total time", best)):
        print(f"{name:16} {networks.total_time(network, found.flows):,.3f}")
    print(f"tolls bring      {tolls @ best.flows:,.1f}")
    if save:
        from bilevel.apps.networks.pictures import flow_map

        maps = {"equilibrium": now.flows, "least total time": best.flows}
        figure = flow_map(network, maps, network.capacity)
        figure.patch.set(facecolor="white", alpha=1)
        figure.savefig(save, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    show_map(*given.files, given.save) if given.files else show_braess()
