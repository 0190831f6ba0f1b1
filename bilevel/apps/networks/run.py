"""`bilevel network`: equilibrium, optimum and design of a road network, with a map."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bilevel import options, report
from bilevel.apps.networks import pictures
from bilevel.apps.networks.assignment import (
    Equilibrium,
    beckmann,
    equilibrium,
    links_of,
    total_time,
)
from bilevel.apps.networks.baseline import genetic
from bilevel.apps.networks.design import first_best_tolls, improve, plan
from bilevel.apps.networks.losses import Design, Evaluator, Kind
from bilevel.apps.networks.network import Network, read
from bilevel.apps.networks.settings import NetworkOptions, Task
from bilevel.driver import Outcome

SHOWN = 30  # links in the report's table
ENOUGH = 0.02  # a change of x that is worth telling


def run(given: NetworkOptions) -> None:
    """Read, solve, show, and write the report.

    Raises:
        ValueError, OSError: in one sentence, before anything runs.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is written.
    """
    out = report.check_writable(given.out)
    table = report.check_writable(given.flows, "the flows") if given.flows else None
    network = read(given.links, given.trips)
    console = Console()
    now = equilibrium(network)
    best, tolls = first_best_tolls(network)
    least = total_time(network, best.flows)
    numbers = {
        "total time at equilibrium": total_time(network, now.flows),
        "least total time possible": least,
        "revenue of first-best tolls": float(tolls @ best.flows),
    }
    sections = [_summary(network, now, numbers)]
    maps, flows = {"equilibrium": now.flows, "least total time": best.flows}, now
    if given.design is not Task.EQUILIBRIUM:
        kind = Kind(given.design.value)
        wanted = plan(network, kind, given.only, most=given.most, price=given.price)
        flows, section, ended = _design(wanted, given.steps, given.seed, numbers)
        numbers |= ended
        sections.append(section)
        maps = {"equilibrium": now.flows, "with the design": flows.flows}
    figure = pictures.flow_map(network, maps, network.capacity)
    caption = "Lines as wide as the flow. Nodes stand where free travel times put them."
    sections.append(report.Section("Map", [report.Figure(figure, caption), _links(network, flows)]))
    rows = report.Table(("option", "value", "what it is"), options.rows(given))
    sections.append(report.Section("Settings", [rows]))
    console.print(_shown(numbers))
    report.write(out, f"Flows on {given.links.name}", sections)
    if table is not None:
        _write(network, flows, table)
    console.print(f"Report written to {out}", soft_wrap=True, highlight=False)


def _summary(network: Network, now: Equilibrium, numbers: Mapping[str, float]) -> report.Section:
    cards = [(f"{value:,.3f}", name) for name, value in numbers.items()]
    text = (
        f"{network.links} links, {len(network.trips)} pairs, {network.trips.sum():,.0f} trips. The "
        f"equilibrium's relative gap is {now.gap:.0e}, its Beckmann function "
        f"{beckmann(links_of(network), now.flows):,.6f}. Selfish choice of paths costs "
        f"{numbers['total time at equilibrium'] / numbers['least total time possible']:.4f} times "
        "the least total time; tolls of v t'(v) on all links would reach it."
    )
    return report.Section("In short", [report.Numbers(cards), report.Text(text)])


def _design(
    plan: Design, steps: int, seed: int, numbers: Mapping[str, float]
) -> tuple[Equilibrium, report.Section, dict[str, float]]:
    """By the hypergradient, and by the genetic baselines with as many equilibria."""
    ours = Evaluator(plan)
    found = improve(ours, steps=steps)
    if found.result.status.outcome is Outcome.INTERRUPTED:
        raise KeyboardInterrupt
    histories: dict[str, Any] = {"hypergradient": found.history}
    ended = {"hypergradient": found.value}
    k, whole = len(plan.links), plan.kind is Kind.LINKS
    for name, hybrid in (("genetic hybrid", True), ("genetic", False)):
        other = genetic(
            Evaluator(plan).loss, k, evaluations=ours.count, whole=whole, hybrid=hybrid, seed=seed
        )
        histories[name], ended[name] = other.history, other.value
    figure = pictures.race(histories, {"possible": numbers["least total time possible"]})
    changed = np.flatnonzero(found.x > ENOUGH)
    rows = [(plan.network.label(plan.links[i]), float(found.x[i] * plan.most[i])) for i in changed]
    what = "toll" if plan.kind is Kind.TOLLS else "capacity added"
    blocks = [
        report.Text(
            f"{ours.count} equilibria each; the hypergradient costs one more linear system a step. "
            "The design is a local minimum: another start may end elsewhere."
        ),
        report.Figure(figure, "The dashed line is the least total time of any tolls."),
        report.Table(("link", what), rows or [("none", 0.0)]),
    ]
    title = f"Design of {plan.kind.value}"
    return ours.solve(found.x), report.Section(title, blocks), ended


def _links(network: Network, flows: Equilibrium) -> report.Table:
    order = np.argsort(-flows.flows)[:SHOWN]
    rows = [(network.label(i), float(flows.flows[i]), float(flows.costs[i])) for i in order]
    return report.Table(("link", "flow", "cost"), rows, formats={"flow": ",.1f", "cost": ".3f"})


def _shown(numbers: Mapping[str, float]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, value in numbers.items():
        table.add_row(name, f"{value:,.3f}")
    return table


def _write(network: Network, flows: Equilibrium, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("from", "to", "flow", "cost"))
        for i in range(network.links):
            ends = network.names[network.start[i]], network.names[network.end[i]]
            writer.writerow((*ends, repr(float(flows.flows[i])), repr(float(flows.costs[i]))))
