"""`multislo simulate dynamo`: NVIDIA's SLA planner, in its own off-line replay, and multislo on the same requests: instance-hours at equal
attainment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from multislo_sim.dynamo.engine import Mismatch
from multislo_sim.dynamo.judged import (
    BATCH_TOKENS,
    STARTUP_S,
    Ground,
    Played,
    ground_of,
    judge_theirs,
    least_hours,
    play_ours,
)
from multislo_sim.dynamo.replay import Asked as Run
from multislo_sim.dynamo.replay import ReplayFailed, replayed
from multislo_sim.experiments.asked import Asked, experiment
from multislo_sim.experiments.show import show, table_of, told
from multislo_sim.scaling.contenders import OURS as SETTINGS

LEVELS = (0.95, 0.98)
POLICIES = ("multislo_stock", "multislo")
LIKELY = 0.9
"""The production law's setting that is tried first."""
TOLD_ONE = ((1.0, 1.0), (0.5, 0.5), (0.35, 0.35), (0.3, 0.3), (0.25, 0.25), (0.2, 0.2), (0.15, 0.4), (0.15, 0.28))
TOLD_TIGHTEST = ((2.0, 2.5), (1.0, 1.0), (0.5, 1.0), (0.5, 0.6), (0.25, 1.0), (0.25, 0.6))
"""What NVIDIA's planner is told of TTFT and TPOT, as shares: the knob by which it is made generous. It knows no attainment: a TPOT near an
idle engine's own (6 ms of 50) makes it start whatever it may."""
DAY_S, QUICK_S = 7200.0, 2400.0


@click.command()
@experiment(POLICIES, instances=4)
@click.option(
    "--dynamo-python",
    "python",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="A Python interpreter with ai-dynamo 1.4 and what its planner needs.",
)
@click.option("--tiers", type=click.Choice(["one", "four"]), default="one", show_default=True, help="One: 500 / 50 ms.")
def dynamo(asked: Asked, python: Path, tiers: str) -> None:
    """Compare NVIDIA's SLA planner with multislo: instance-hours of a day with bursts for 95 % and 98 % in time. The planner runs in its
    own replay (aggregated engines, its mocker with our latency model, its KV router). With four tiers it is told the tightest SLO, and its
    engines know no tiers. Start-up takes 105 s for both. Uses the first seed.

    Example: multislo simulate dynamo --trace azure.csv --dynamo-python ~/dynamo/bin/python --quick
    """
    seed = asked.seeds[0]
    one_tier = tiers == "one"
    duration_s = QUICK_S if asked.quick else DAY_S
    ground = ground_of(asked.profile, asked.lengths, asked.instances, duration_s, one_tier, seed)
    try:
        theirs, passes = play_theirs(ground, python)
    except ReplayFailed as error:
        raise click.UsageError(f"--dynamo-python: {error}") from error
    ours = [each for policy in asked.policies for each in play_settings(ground, policy, seed)]
    report = dynamo_report(asked.workload, ground, [*theirs, *ours], passes)
    show(asked, report, dynamo_tables(report))


def runs_of(ground: Ground) -> list[Run]:
    slo = ground.told
    return [
        Run(f"told {ttft:g} of TTFT, {tpot:g} of TPOT", ttft * slo.ttft_s, tpot * slo.tpot_s, True, BATCH_TOKENS)
        for ttft, tpot in (TOLD_ONE if ground.one_tier else TOLD_TIGHTEST)
    ]


def play_theirs(ground: Ground, python: Path) -> tuple[list[Played], Mapping[str, Mismatch]]:
    """All settings, and how far the first run's passes were from our law."""
    played: list[Played] = []
    passes: Mapping[str, Mismatch] = {}
    runs = runs_of(ground)
    came = replayed(python, ground.profile, ground.requests, ground.first, STARTUP_S, ground.usual, runs)
    for run, each in zip(runs, came, strict=True):
        passes = passes or each.mismatch
        played.append(judge_theirs(ground, run, each))
        told(f"dynamo, {run.name}: {played[-1].shares.in_time:.1%}, {played[-1].hours:.2f} instance-hours")
    return played, passes


def play_settings(ground: Ground, policy: str, seed: int) -> list[Played]:
    """From a likely setting to the leanest that reaches every level, or to the most generous."""
    index = next(index for index, setting in enumerate(SETTINGS) if setting["attainment"] == LIKELY)
    tried: dict[int, Played] = {}

    def reaches(index: int) -> bool:
        if index not in tried:
            tried[index] = play_ours(ground, policy, SETTINGS[index], seed)
            told(f"{policy}, {tried[index].setting}: {tried[index].shares.in_time:.1%}, {tried[index].hours:.2f} h")
        return tried[index].shares.in_time >= max(LEVELS)

    while not reaches(index) and index < len(SETTINGS) - 1:
        index += 1
    while reaches(index) and index > 0 and reaches(index - 1):
        index -= 1
    return [tried[index] for index in sorted(tried)]


def dynamo_report(
    workload: str, ground: Ground, played: Sequence[Played], passes: Mapping[str, Mismatch]
) -> dict[str, Any]:
    """The machine-readable answer; None where no setting reaches a level. `ratio`: our hours to theirs."""
    cheapest = {
        policy: {key_of(level): _cheapest(played, policy, level) for level in LEVELS}
        for policy in dict.fromkeys(each.policy for each in played)
    }
    return {
        "workload": workload,
        "profile": ground.profile.name,
        "tiers": 1 if ground.one_tier else 4,
        "told_ms": [1000.0 * ground.told.ttft_s, 1000.0 * ground.told.tpot_s],
        "requests": len(ground.requests),
        "first_instances": ground.first,
        "startup_s": STARTUP_S,
        "least_hours": {key_of(level): round(least_hours(ground, level), 3) for level in LEVELS},
        "mocker_to_law": {
            kind: {"passes": each.passes, "ratio": round(each.ratio, 4)} for kind, each in passes.items()
        },
        "policies": {
            policy: {
                **{f"{key}_hours": best and round(best.hours, 3) for key, best in bests.items()},
                **{f"{key}_setting": best and best.setting for key, best in bests.items()},
                "tried": [_tried(each) for each in played if each.policy == policy],
            }
            for policy, bests in cheapest.items()
        },
        "ratio": {
            policy: {key: _ratio(best, cheapest["dynamo"][key]) for key, best in bests.items()}
            for policy, bests in cheapest.items()
            if policy != "dynamo"
        },
    }


def key_of(level: float) -> str:
    return f"p{100 * level:g}"


def _cheapest(played: Sequence[Played], policy: str, level: float) -> Played | None:
    reach = [each for each in played if each.policy == policy and each.shares.in_time >= level]
    return min(reach, key=lambda each: each.hours) if reach else None


def _ratio(ours: Played | None, theirs: Played | None) -> float | None:
    return round(ours.hours / theirs.hours, 4) if ours is not None and theirs is not None else None


def _tried(each: Played) -> dict[str, Any]:
    shares = each.shares
    return {
        "setting": each.setting,
        "in_time": round(shares.in_time, 4),
        "mean_itl": round(shares.mean_itl, 4),
        "every_token": None if shares.every_token is None else round(shares.every_token, 4),
        "hours": round(each.hours, 3),
        "instances_most": each.instances_most,
        "scalings": each.scalings,
    }


def dynamo_tables(report: Mapping[str, Any]) -> list[Table]:
    least = report["least_hours"]
    rows = [
        (policy, *(row[f"{key}_hours"] for key in least), *(row[f"{key}_setting"] for key in least))
        for policy, row in report["policies"].items()
    ]
    rows.append(("fluid bound", *least.values(), *(None for _ in least)))
    heads = [f"{key[1:]} %" for key in least]
    title = f"instance-hours, {report['requests']} requests, {report['tiers']} tier{'s' * (report['tiers'] > 1)}"
    best = table_of(title, ("law", *heads, *(f"setting for {head}" for head in heads)), rows)
    runs = [(policy, *each.values()) for policy, row in report["policies"].items() for each in row["tried"]]
    columns = ("law", "setting", "in time", "by mean ITL", "every token", "hours", "most", "scalings")
    fitted = [(kind, each["passes"], each["ratio"]) for kind, each in report["mocker_to_law"].items()]
    mocker = table_of("seconds of the mocker's passes to our law's", ("passes", "seen", "ratio"), fitted)
    return [best, table_of("all runs", columns, runs), mocker]
