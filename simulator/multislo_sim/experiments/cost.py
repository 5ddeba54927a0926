"""`multislo simulate cost`: instance-seconds per request under a steady load, with autoscaling and 99 % of the requests in time."""

from typing import Any

import click
from matplotlib.figure import Figure
from rich.table import Table

from multislo_sim.experiments.asked import Asked, experiment
from multislo_sim.experiments.day import rate_of_one
from multislo_sim.experiments.show import COLOURS, run_each, show, table_of
from multislo_sim.scaling.contenders import SCALED, USUALLY, scaled_named
from multislo_sim.scaling.search import Found, Ground, leanest
from multislo_sim.scaling.trial import least_instance_s, load_of
from multislo_sim.workloads.day import Day

LEVEL = 0.99
STEADY_S, QUICK_S = 1800.0, 900.0


@click.command()
@experiment([scaled.name for scaled in SCALED], USUALLY, instances=8)
def cost(asked: Asked) -> None:
    """Find the instance-seconds per request for 99 % in time under a steady load, by scaling law. Each law has its leanest setting
    that attains it. --instances is the smallest number that could serve the load.

    Example: multislo simulate cost --trace azure.csv --policies multislo,hpa_work_shared,hpa_work
    """
    steady = Day(asked.instances * rate_of_one(asked), QUICK_S if asked.quick else STEADY_S, 1.0, ())
    ground = Ground(asked.profile, asked.lengths, steady, asked.seeds, (LEVEL,))
    found = run_each(leanest, {name: (ground, name) for name in asked.policies}, asked.jobs)
    report = cost_report(asked, ground, found)
    show(asked, report, [cost_table(report)], lambda figure: cost_figure(figure, report))


def cost_report(asked: Asked, ground: Ground, found: dict[str, Found]) -> dict[str, Any]:
    load = load_of(ground.profile, ground.lengths, ground.day, ground.seeds[0])
    least_s = least_instance_s(load, LEVEL) / len(load.counted())
    rows: dict[str, Any] = {}
    for name, of in found.items():
        best = of.best[LEVEL]
        each_s = None if best is None else best.run.instance_s / best.run.requests
        rows[name] = {
            "group": scaled_named(name).group,
            "instance_s_per_request": None if each_s is None else round(each_s, 4),
            "to_least": None if each_s is None else round(each_s / least_s, 3),
            "setting": None if best is None else dict(best.setting),
            "tried": [
                {"setting": dict(t.setting), "attained": round(t.attained, 4), "hours": round(t.hours, 3)}
                for t in of.tried
            ],
        }
    return {
        "workload": asked.workload,
        "profile": asked.profile.name,
        "seeds": list(asked.seeds),
        "quick": asked.quick,
        "rate_rps": round(ground.day.peak, 3),
        "requests": len(load.counted()),
        "least_instance_s_per_request": round(least_s, 4),
        "policies": rows,
    }


def cost_table(report: dict[str, Any]) -> Table:
    rows = []
    for name, row in report["policies"].items():
        each_s = row["instance_s_per_request"]
        said = ", ".join(f"{knob} {value:g}" for knob, value in (row["setting"] or {}).items())
        rows.append((name, row["group"], "never" if each_s is None else f"{each_s:.3f}", row["to_least"], said or "-"))
    rows.append(("fluid bound", "", f"{report['least_instance_s_per_request']:.3f}", 1.0, ""))
    title = f"{report['rate_rps']:.1f} req/s, 99 % in time"
    return table_of(title, ("law", "over", "instance-seconds a request", "to the bound", "setting"), rows)


def cost_figure(figure: Figure, report: dict[str, Any]) -> None:
    """A bar a law, the bound as a line."""
    axes = figure.subplots()
    names = [name for name, row in report["policies"].items() if row["instance_s_per_request"] is not None]
    costs = [report["policies"][name]["instance_s_per_request"] for name in names]
    bars = axes.bar(range(len(names)), costs, color=COLOURS[0])
    axes.bar_label(bars, [f"{each_s:.2f}" for each_s in costs], fontsize=8)
    axes.axhline(report["least_instance_s_per_request"], color=COLOURS[1], linestyle=":", label="fluid bound")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_ylabel("instance-seconds a request")
    axes.set_title(f"Steady {report['rate_rps']:.1f} requests a second, 99 % in time")
    axes.legend(fontsize=8)
