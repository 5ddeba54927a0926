"""`multislo simulate day`: the cost of each scaling law over a day with bursts, at equal attainment."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
from matplotlib.figure import Figure
from rich.table import Table

from multislo_api.number import Number
from multislo_sim.bound import bound
from multislo_sim.experiments.asked import Asked, experiment
from multislo_sim.experiments.show import COLOURS, run_each, show, table_of
from multislo_sim.scaling.contenders import SCALED, USUALLY, scaled_named
from multislo_sim.scaling.search import Found, Ground, Tried, between, leanest
from multislo_sim.scaling.trial import STARTUP_S, WARMUP_S, least_instance_s, load_of
from multislo_sim.trial import classed
from multislo_sim.workloads.day import Day

LEVELS = (0.95, 0.98)
OURS, OURS_STOCK = "multislo", "multislo_stock"


@click.command()
@experiment([scaled.name for scaled in SCALED], USUALLY, instances=8)
@click.option("--hours", type=Number(min=0.5), default=2.0, show_default=True, help="Length of the compressed day.")
def day(asked: Asked, hours: float) -> None:
    """Find the instance-hours of a day by scaling law, each with its leanest setting that has 95 % or 98 % of the requests in time. The day
    has three bursts that invert the mix of tiers; start-up takes 60 to 150 s. --instances is the smallest number that could serve noon.
    --quick halves the hours.

    Example: multislo simulate day --trace azure.csv --policies multislo,hpa_work_shared,hpa_work
    """
    one = rate_of_one(asked)
    curve = Day(asked.instances * one, 3600.0 * (0.5 * hours if asked.quick else hours))
    ground = Ground(asked.profile, asked.lengths, curve, asked.seeds, LEVELS)
    found = run_each(leanest, {name: (ground, name) for name in asked.policies}, asked.jobs)
    report = day_report(asked, ground, found)
    show(asked, report, day_tables(report), lambda figure: day_figure(figure, found, one))


def rate_of_one(asked: Asked) -> float:
    """Requests a second that the fluid bound lets one instance serve."""
    requests = classed(asked.lengths, asked.profile, asked.seeds[0])[0]
    return bound(requests, asked.profile.latency, asked.profile.kv_tokens_max, 1, LEVELS[-1])


def key_of(level: float) -> str:
    return f"p{100 * level:g}"


def day_report(asked: Asked, ground: Ground, found: Mapping[str, Found]) -> dict[str, Any]:
    """The machine-readable answer; None where no setting reaches a level."""
    load = load_of(ground.profile, ground.lengths, ground.day, ground.seeds[0])
    report: dict[str, Any] = {
        "workload": asked.workload,
        "profile": asked.profile.name,
        "seeds": list(asked.seeds),
        "quick": asked.quick,
        "requests": len(load.counted()),
        "peak_rps": round(ground.day.peak, 3),
        "duration_s": ground.day.duration_s,
        "warmup_s": WARMUP_S,
        "startup_s": list(STARTUP_S),
        "least_hours": {key_of(level): round(least_instance_s(load, level) / 3600.0, 3) for level in ground.levels},
        "policies": {name: _row(of, ground.levels) for name, of in found.items()},
    }
    for name in (OURS, OURS_STOCK):
        if name in found:
            report["ratio" if name == OURS else "stock_ratio"] = {
                key_of(level): _ratios(found, name, level) for level in ground.levels
            }
    return report


def _row(of: Found, levels: Sequence[float]) -> dict[str, Any]:
    hours = {f"{key_of(level)}_hours": _hours(of, level) for level in levels}
    settings = {
        f"{key_of(level)}_setting": dict(best.setting) if (best := of.best[level]) is not None else None
        for level in levels
    }
    return {
        "group": scaled_named(of.policy).group,
        **hours,
        **{f"{key_of(level)}_hours_between": _rounded(between(of, level)) for level in levels},
        **settings,
        "tried": [_tried(each) for each in of.tried],
    }


def _tried(each: Tried) -> dict[str, Any]:
    return {
        "setting": dict(each.setting),
        "attained": round(each.attained, 4),
        "attained_by_tier": {name: round(share, 4) for name, share in each.run.attained.items()},
        "hours": round(each.hours, 3),
        "instances_most": each.run.instances_most,
        "starts": each.run.starts,
    }


def _hours(of: Found, level: float) -> float | None:
    best = of.best[level]
    return None if best is None else _rounded(best.hours)


def _rounded(hours: float | None) -> float | None:
    return None if hours is None else round(hours, 3)


def _ratios(found: Mapping[str, Found], ours: str, level: float) -> dict[str, float | None]:
    """Our hours to the least of each group."""
    own = _hours(found[ours], level)

    router = scaled_named(ours).contender

    def to_best(group: str, over: str | None) -> float | None:
        rivals = [scaled_named(name) for name in found]
        names = [r.name for r in rivals if r.group == group and over in (None, r.contender)]
        reached = [hours for name in names if (hours := _hours(found[name], level)) is not None]
        return round(own / min(reached), 4) if own is not None and reached else None

    return {"best_static": to_best("static", None), "hpa_same_router": to_best("shared", router)}


def day_tables(report: Mapping[str, Any]) -> list[Table]:
    keys = list(report["least_hours"])
    rows = []
    for name, row in report["policies"].items():
        settings = row[f"{keys[-1]}_setting"] or {}
        said = ", ".join(f"{knob} {value:g}" for knob, value in settings.items())
        just_hours = row[f"{keys[-1]}_hours_between"]
        just = "-" if just_hours is None else f"{just_hours:.2f}"
        rows.append((name, row["group"], *(_said(row[f"{key}_hours"]) for key in keys), just, said or "-"))
    rows.append(("fluid bound", "", *(f"{hours:.2f}" for hours in report["least_hours"].values()), "", ""))
    last = f"{keys[-1][1:]} %"
    columns = ("law", "over", *(f"{key[1:]} %" for key in keys), f"just {last}", f"setting for {last}")
    tables = [table_of("instance-hours", columns, rows)]
    for name, title in (("ratio", "multislo"), ("stock_ratio", "multislo, stock engines")):
        if name in report:
            ratios = report[name]
            against = [(rival, *(ratios[key][rival] for key in keys)) for rival in ratios[keys[0]]]
            tables.append(table_of(f"{title}: hours to", ("rival", *(f"{key[1:]} %" for key in keys)), against))
    return tables


def _said(hours: float | None) -> str:
    return "never" if hours is None else f"{hours:.2f}"


def day_figure(figure: Figure, found: Mapping[str, Found], rate_of_one: float) -> None:
    """Instances and load (as the instances that could just serve it) over the day, and attainment below: ours, and the cheapest law of
    each other group."""
    shown = _shown(found)
    if not shown:
        return
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    first = next(iter(shown.values())).run.bins
    peak = max(bin.instances for each in shown.values() for bin in each.run.bins)
    least = [bin.rate / rate_of_one for bin in first]
    worst = min(bin.attained for each in shown.values() for bin in each.run.bins)
    hours = [bin.at_s / 3600.0 for bin in first]
    above.fill_between(hours, least, step="post", color="#dddddd", label="load: the least by the fluid bound")
    for colour, (name, each) in zip(COLOURS, shown.items(), strict=False):
        bins = each.run.bins
        at = [bin.at_s / 3600.0 for bin in bins]
        label = f"{name}: {each.hours:.1f} instance-hours, {each.attained:.1%}"
        above.step(at, [bin.instances for bin in bins], where="post", color=colour, label=label)
        below.step(at, [100.0 * bin.attained for bin in bins], where="post", color=colour)
    above.set_ylabel("instances")
    above.set_ylim(0.0, 1.35 * peak)
    above.legend(loc="upper left", fontsize=8)
    below.set_ylabel("% in time, each minute")
    below.set_ylim(min(90.0, 100.0 * worst - 2.0), 101.0)
    below.set_xlabel("hours")


def _shown(found: Mapping[str, Found]) -> dict[str, Tried]:
    """The run at the highest level that anybody of the group reaches."""
    shown: dict[str, Tried] = {}
    for group in ("ours", "shared", "static"):
        best = [
            (each.hours, name, each)
            for name, of in found.items()
            if scaled_named(name).group == group and (each := of.best[max(of.best)]) is not None
        ]
        cheapest = sorted(best, key=lambda row: row[:2])[: 2 if group == "static" else 1]
        shown.update({name: each for _, name, each in cheapest})
    return shown
