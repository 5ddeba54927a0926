"""The what-if's answer as tables and as a picture. Called by its command."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from multislo_api.duration import format_duration
from multislo_sim.experiments.show import COLOURS

SIZE = (13.0, 8.0)
WIDTH_LEAST = 120
"""Columns, where the output is no terminal that says its own: a table that is cut says nothing."""
TIER_COLOURS = COLOURS[3:6] + COLOURS[:3]
"""Other than the first rows'."""
Report = Mapping[str, Any]


def wide() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=max(WIDTH_LEAST, console.width))


def tables(report: Report) -> list[Table]:
    """Accelerators and attainment, a row for each what-if; then each row's tiers."""
    rows = report["rows"]
    base = rows[0]["accelerators"]["hours"]
    fixed = any(row["fixed"] for row in rows)
    cells = []
    for row in rows:
        use = row["accelerators"]
        change = None if row is rows[0] or not base else f"{use['hours'] / base - 1.0:+.0%}"
        worst = min((t["attainment"] for t in row["tiers"].values() if t["attainment"] is not None), default=None)
        cells.append(
            [
                row["name"],
                f"{use['mean']:.1f}",
                f"{use['min']}-{use['max']}",
                hours(use["hours"]),
                change,
                share(row["attainment"]),
                share(worst),
                *([_fixed(row["fixed"])] if fixed else []),
            ]
        )
    over = f"{format_duration(round(report['span_s']))}, {rows[0]['rate_rps']:.1f} requests/s"
    columns = [
        "what if",
        "GPUs, mean",
        "least-most",
        "GPU-hours",
        "",
        "in time",
        "worst tier",
        *(["fixed"] if fixed else []),
    ]
    return [table_of_text(f"{report['workload']}, {over}, with the autoscaler", columns, cells), _by_tier(rows, fixed)]


def _by_tier(rows: Sequence[Report], fixed: bool) -> Table:
    cells = []
    for row in rows:
        for number, (name, tier) in enumerate(row["tiers"].items()):
            of = tier["instances"]
            counts = (row["fixed"] or {}).get("instances")
            cells.append(
                [
                    None if number else row["name"],
                    name,
                    f"{format_duration(tier['ttft_s'])} / {format_duration(tier['tpot_s'])}",
                    tier["requests_counted"],
                    share(tier["attainment"]),
                    f"{of['mean']:.1f}",
                    f"{of['min']}-{of['max']}",
                    *([counts[name] if counts else None] if fixed else []),
                ]
            )
        if row["warm_pool"]["max"]:
            of = row["warm_pool"]
            cells.append([None, "(warm pool)", None, None, None, f"{of['mean']:.1f}", f"{of['min']}-{of['max']}"])
    columns = [
        "what if",
        "tier",
        "TTFT / TPOT",
        "requests",
        "in time",
        "instances",
        "least-most",
        *(["fixed"] if fixed else []),
    ]
    return table_of_text("by tier", columns, cells)


def table_of_text(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(
            column, justify="left" if index == 0 or column == "tier" else "right", no_wrap=index > 0, overflow="fold"
        )
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    return table


def hours(value: float) -> str:
    return f"{value:.1f}" if value >= 10.0 else f"{value:.2f}"


def tier_names(rows: Sequence[Report]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["tiers"]))


def _fixed(fixed: Report | None) -> str | None:
    if fixed is None:
        return None
    if fixed["accelerators"] is None:
        return "none attains"
    return f"{fixed['accelerators']}" + (" (over the limit)" if fixed["short"] else "")


def share(value: float | None) -> str | None:
    """Rounded down: 1.0000 is all of them."""
    return None if value is None else f"{int(value * 1e4) / 1e4:.4f}"


def drawing(report: Report) -> Callable[[Figure], None]:
    """Four panels: accelerators over time, the first row's by tier, attainment, accelerator-hours."""

    def draw(figure: Figure) -> None:
        rows = report["rows"]
        ((over_time, attained), (stacked, cost)) = figure.subplots(2, 2, width_ratios=(3, 2))
        figure.suptitle(f"{report['manifest']} on {report['workload']}")
        for number, row in enumerate(rows):
            # The first the broadest, so that equal ones do not hide each other.
            width = 1.2 + 3.0 * (1.0 - number / len(rows))
            _line(over_time, row["over_time"], row["name"], COLOURS[number % len(COLOURS)], width)
        most = rows[0]["accelerators_max"]
        if most <= 2 * max(row["accelerators"]["max"] for row in rows):
            over_time.axhline(most, color="#888888", linestyle="--", linewidth=0.8, label="acceleratorsMax")
        over_time.set(title="accelerators over time", xlabel="minutes", ylabel="accelerators", ylim=(0, None))
        figure.legend(*over_time.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=3)
        _stack(stacked, rows[0])
        for axes in (over_time, stacked):
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _attained(attained, rows)
        _hours(cost, rows)

    return draw


def _line(axes: Axes, points: Sequence[Report], name: str, colour: str, width: float) -> None:
    for number, part in enumerate(_unbroken(points)):
        minutes = [point["at_s"] / 60.0 for point in part]
        values = [point["accelerators"] for point in part]
        label = name if number == 0 else None
        axes.step(minutes, values, where="post", color=colour, linewidth=width, label=label)


def _stack(axes: Axes, row: Report) -> None:
    names = list(row["tiers"])
    colours = [*(TIER_COLOURS[number % len(TIER_COLOURS)] for number in range(len(names))), "#dddddd"]
    for number, part in enumerate(_unbroken(row["over_time"])):
        minutes = [point["at_s"] / 60.0 for point in part]
        layers = [[point["instances"][name] for point in part] for name in names]
        layers.append([point["warm_pool"] for point in part])
        labels = [*names, "warm pool"] if number == 0 else ()
        axes.stackplot(minutes, layers, step="post", colors=colours, labels=labels, linewidth=0)
    axes.set(
        title=f"instances by tier, {row['name']}",
        xlabel="minutes",
        ylabel="instances",
        ylim=(0, 1.25 * axes.get_ylim()[1]),
    )
    axes.legend(fontsize="small", loc="upper left", ncols=4)


def _unbroken(points: Sequence[Report]) -> list[list[Report]]:
    """Cut where the trace was not played."""
    gaps = [after["at_s"] - before["at_s"] for before, after in pairwise(points)]
    usual = sorted(gaps)[len(gaps) // 2] if gaps else 0.0
    parts = [[points[0]]]
    for point, gap in zip(points[1:], gaps, strict=True):
        if gap > 3.0 * usual:
            parts.append([])
        parts[-1].append(point)
    return parts


def _attained(axes: Axes, rows: Sequence[Report]) -> None:
    names = tier_names(rows)
    for number, row in enumerate(rows):
        shares = [(row["tiers"].get(name) or {}).get("attainment") for name in names]
        # Side by side, so that equal ones do not hide each other.
        beside = 0.5 * ((number + 0.5) / len(rows) - 0.5)
        known = [(at + beside, share) for at, share in enumerate(shares) if share is not None]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            [at for at, _ in known], [share for _, share in known], "o", color=colour, label=row["name"], clip_on=False
        )
    axes.axhline(rows[0]["goal"], color="#888888", linestyle="--", linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    known_shares = [of["attainment"] for row in rows for of in row["tiers"].values() if of["attainment"] is not None]
    least = min([rows[0]["goal"], *known_shares])
    edge = 0.06 * (1.0 - least) + 1e-4
    title = "share of requests in time (dashed: the goal)"
    axes.set(title=title, ylim=(least - edge, 1.0 + edge), xlim=(-0.5, len(names) - 0.5))
    axes.grid(axis="y", alpha=0.3)


def _hours(axes: Axes, rows: Sequence[Report]) -> None:
    values = [row["accelerators"]["hours"] for row in rows]
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(rows))]
    bars = axes.barh(range(len(rows)), values, min(0.8, 0.2 * len(rows)), color=colours)
    axes.bar_label(bars, [hours(value) for value in values], padding=3)
    axes.set_yticks(range(len(rows)), [fill(row["name"], 30) for row in rows], fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(title="accelerator-hours")
