"""The share of requests in time at given rates, by router policy: what `multislo simulate --rate` prints."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from rich.table import Table

from multislo_perf.profile import Profile
from multislo_router.core.config import Placement
from multislo_router.core.events import Scheduler
from multislo_sim.contenders import Setup, budgets
from multislo_sim.experiments.show import table_of, told
from multislo_sim.rivals import RIVALS
from multislo_sim.trial import Window, arriving, classed, fleet_of, homes_of, play
from multislo_sim.workloads.request import Request

POLICIES = (*(placement.value for placement in Placement), *RIVALS)
TIERS = ("all", "20ms", "30ms", "50ms", "100ms")


def attainments(
    profile: Profile,
    lengths: Sequence[Request],
    rates: Sequence[float],
    policies: Sequence[str],
    instances: int,
    scheduler: Scheduler,
    batch_tokens: int | None,
    window: Window,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """A row for each rate and policy, the mean over the seeds."""
    rows = []
    for rate in rates:
        for policy in policies:
            runs = []
            for seed in seeds:
                told(f"{policy}, {rate:g} req/s, seed {seed}")
                setup = Setup(
                    budgets(profile, batch_tokens or "by tier"),
                    RIVALS[policy]() if policy in RIVALS else None,
                    scheduler=scheduler,
                    placement=Placement.PACK if policy in RIVALS else Placement(policy),
                )
                requests = arriving(classed(lengths, profile, seed)[0], rate, window.total_s, seed)
                played = play(fleet_of(setup, profile, homes_of(instances, setup.home_shares), requests), window)
                runs.append(played.attained)
            tiers = {name: mean(run[name] for run in runs if name in run) for name in runs[0]}
            rows.append({"rate": rate, "policy": policy, "attainment": tiers})
    return rows


def attainment_table(rows: Sequence[dict[str, Any]]) -> Table:
    return table_of(
        "share of requests in time",
        ("policy", "req/s", *TIERS),
        [(row["policy"], f"{row['rate']:g}", *(row["attainment"].get(name) for name in TIERS)) for row in rows],
    )
