"""Prints all that this build decides in random lives of a small fleet, as journals, and in simulated runs of larger ones, every number in
full. Both builds must print the same. With the word `journal` it prints one whole journal instead. Called by test_builds.py."""

import sys
from dataclasses import replace
from random import Random

import test_core_properties as properties

from multislo_perf.profile import load_profile
from multislo_router.build import build
from multislo_router.core import events as e
from multislo_router.core.config import Placement
from multislo_sim.contenders import contender_named
from multislo_sim.fleet import SimulatedFleet
from multislo_sim.trial import arriving, classed, fleet_of, homes_of, scenario_of
from multislo_sim.workloads.shapes import SHAPES, shaped_lengths

LIVES, EVENTS = 40, 150
POLICIES = ("multislo", "multislo_half", "multislo_stock", "polyserve", "qoserve", "llm_d_headroom", "static_partition")
PROFILE = load_profile("llama-3.1-8b-h200-tp1")
INSTANCES, RATE, SECONDS = 6, 170.0, 12.0


def lives(placement: Placement, scheduler: e.Scheduler) -> None:
    for seed in range(LIVES):
        dice = Random(seed)
        config = properties.config_of(placement, scheduler, dice.randrange(64))
        life = properties.live(config, dice.randbytes(2 + 4 * EVENTS), properties.Recorded)
        sys.stdout.writelines(line.decode() for line in life.journal[1:])  # the first one names the build
        print(life.core.status(life.now))


def runs(policy: str) -> None:
    """The same load with and without rejection, then with reports that are late."""
    requests, _ = classed(shaped_lengths(SHAPES["azure-like"], 1000, 1), PROFILE, 1)
    arrivals = arriving(requests, RATE, SECONDS, 1)
    setup, homes = contender_named(policy).setup(PROFILE, 1), homes_of(INSTANCES)
    for rejecting in (False, True):
        told(fleet_of(setup, PROFILE, homes, arrivals, rejecting))
    scenario = scenario_of(setup, PROFILE, homes)
    told(SimulatedFleet(replace(scenario, report_delay_s=0.02), arrivals))


def told(fleet: SimulatedFleet) -> None:
    outcome = fleet.run(SECONDS + 20.0)
    for record in outcome.records:
        print(record)
    print(outcome.events, outcome.iterations, outcome.preemptions, fleet.core.status(fleet.now))


if __name__ == "__main__":
    print(build(), file=sys.stderr)
    if sys.argv[1:] == ["journal"]:
        config = properties.config_of(Placement.PACK, e.Scheduler.FCFS, 0)
        life = properties.live(
            config, Random(1).randbytes(2 + 4 * EVENTS), lambda config: properties.Recorded(config, EVENTS // 2)
        )
        sys.stdout.writelines(line.decode() for line in life.journal)
        sys.exit()
    for placement in Placement:
        for scheduler in e.Scheduler:
            lives(placement, scheduler)
    for policy in POLICIES:
        runs(policy)
