"""`multislo simulate tune`: each contender's knobs searched on a trace. What wins on the tuning trace is written into `contenders`."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure
from rich.table import Table

from multislo_sim.contenders import CONTENDERS
from multislo_sim.experiments.asked import QUICK, Asked, experiment
from multislo_sim.experiments.show import COLOURS, run_each, show, table_of
from multislo_sim.goodput import LEVELS, Arena
from multislo_sim.trial import Window
from multislo_sim.tuning import Tuned
from multislo_sim.tuning import tune as tuned_of

KEYS = {0.90: "p90", 0.99: "p99"}
TUNING = Window(30.0, 20.0, 5.0)
INSTANCES = 10
"""Shorter and smaller than where goodput is measured: values are only compared with each other, and a search has some twenty runs."""
STEP, FINE_STEP = 0.02, 0.01


@click.command()
@experiment([contender.name for contender in CONTENDERS], [c.name for c in CONTENDERS if c.knobs], INSTANCES)
@click.option(
    "--full-windows",
    is_flag=True,
    help="Use goodput's full windows: 4 times the cost, without the bias of short windows.",
)
def tune(asked: Asked, full_windows: bool) -> None:
    """Search each policy's knobs on a trace, one after another, at the rate with 99 % and then at that with 90 % in time.

    Values are compared at one rate, one step above the best so far. `goodput --tuned FILE` reads the output of --json.

    Example: multislo simulate tune --trace azure.csv --policies least_predicted_time,qoserve
    """
    if full_windows and asked.quick:
        raise click.UsageError("give either --full-windows or --quick")
    window = Window() if full_windows else QUICK if asked.quick else TUNING
    step = FINE_STEP if full_windows else STEP
    arena = Arena(asked.profile, asked.lengths, asked.instances, asked.seeds, window, step)
    started = time.monotonic()
    found = run_each(tuned_of, {name: (arena, name) for name in asked.policies}, asked.jobs)
    report = {
        **asked.facts(),
        "warmup_s": window.warmup_s,
        "measured_s": window.measured_s,
        "took_s": round(time.monotonic() - started, 1),
        "runs": sum(tuned.runs for tuned in found.values()),
        "policies": {name: tuned_report(tuned) for name, tuned in found.items()},
    }
    show(asked, report, tune_tables(report), lambda figure: tune_figure(figure, report))


def tuned_report(tuned: Tuned) -> dict[str, Any]:
    return {
        "runs": tuned.runs,
        **{KEYS[level]: {"knobs": dict(tuned.knobs[level]), "rps": round(tuned.rates[level], 3)} for level in LEVELS},
        "tried": [
            {
                "level": KEYS[one.level],
                "knob": one.knob,
                "value": one.value,
                "rps": round(one.rate, 3),
                "share": round(one.share, 5),
                "share_best": round(one.share_best, 5),
            }
            for one in tuned.tried
        ],
    }


def tune_tables(report: Mapping[str, Any]) -> list[Table]:
    chosen = [
        (name, level, f"{of[level]['rps']:.1f}", ", ".join(f"{k} {v}" for k, v in of[level]["knobs"].items()))
        for name, of in report["policies"].items()
        for level in ("p99", "p90")
    ]
    tried = [
        (name, one["level"], f"{one['knob']} {one['value']}", f"{one['rps']:.1f}", one["share"], one["share_best"])
        for name, of in report["policies"].items()
        for one in of["tried"]
    ]
    title = f"{report['workload']}: {report['runs']} runs in {report['took_s']:.0f} s"
    return [
        table_of(
            "values tried: share in time, theirs and of the best so far",
            ("policy", "at", "value", "req/s", "share", "best"),
            tried,
        ),
        table_of(f"chosen on {title}", ("policy", "at", "req/s", "knobs"), chosen),
    ]


def tune_figure(figure: Figure, report: Mapping[str, Any]) -> None:
    """What each value tried gains or loses against the best so far."""
    axes = figure.subplots()
    rows = [(name, one) for name, of in report["policies"].items() for one in of["tried"]]
    for level, colour in (("p99", COLOURS[1]), ("p90", COLOURS[0])):
        at = [index for index, (_, one) in enumerate(rows) if one["level"] == level]
        axes.barh(at, [rows[i][1]["share"] - rows[i][1]["share_best"] for i in at], color=colour, label=level)
    axes.set_yticks(range(len(rows)), [f"{name}: {one['knob']} {one['value']}" for name, one in rows], fontsize=6)
    axes.invert_yaxis()
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel("share in time, less that of the best so far (at the same rate; runs broken off show too little)")
    axes.legend()


def knobs_from(path: Path) -> dict[str, Any]:
    """What `--json` printed, by policy: {"p90": {"knobs": ..}, "p99": {"knobs": ..}}."""
    try:
        report = json.loads(path.read_text())
        return {name: {key: dict(of[key]["knobs"]) for key in KEYS.values()} for name, of in report["policies"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.UsageError(
            f"--tuned: {path} is not what `multislo simulate tune --json` prints: {error}"
        ) from error
