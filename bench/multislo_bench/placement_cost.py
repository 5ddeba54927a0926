"""The cost of one decision of the router's core by fleet size: `multislo bench placement`. The production core has the state of a busy
fleet. Instead of engines, simple clocks deliver tokens and ends between the measured arrivals."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from random import Random
from time import perf_counter_ns, thread_time_ns

import numpy as np

from multislo_perf.profile import load_profile
from multislo_perf.sizing import batch_tokens
from multislo_router.core import events
from multislo_router.core.config import CoreConfig, EngineLimits, Placement, TierConfig
from multislo_router.core.decisions import Decision, Place
from multislo_router.core.instance import Instance
from multislo_router.core.machine import RouterCore
from multislo_router.core.placement import PLACEMENTS, Choice, Homes, PlaceBy, kind_on
from multislo_router.core.request import Request
from multislo_router.core.room import Room
from multislo_sim.workloads.shapes import SHAPES, shaped_lengths

PROFILE = "llama-3.1-8b-h100-tp1"
TIERS = (
    ("realtime", 0.3, 0.020, 0.1),
    ("brisk", 0.5, 0.030, 0.2),
    ("steady", 0.5, 0.050, 0.3),
    ("batch", 1.0, 0.100, 0.4),
)
# Decodes on an instance at the start, by tier: what an H100 holds at loads from about a quarter to nearly full, a hundred on
# average. The spread is what packing makes of a fleet: some instances full, a tail that is nearly empty.
DECODES = ((10, 65), (20, 115), (30, 190), (40, 250))
PREFILLS = 2
"""Prompts under way on an instance at the start, at most."""
PAST_S = 6.0
"""The requests of the start arrived over so long before it: about the life of a request of 200 tokens."""
FIRST_TOKEN_S = 0.1
SETTLING_ITERATIONS = 1.5
"""Iterations of each engine between the building of the state and the first measured arrival, on average."""
SETTLING_LEAST = 1500


@dataclass(slots=True)
class Costs:
    """Nanoseconds of `RouterCore.handle`, by kind of event; and the decisions about the arrivals."""

    arrivals: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    placed: int = 0
    held: int = 0
    refused: int = 0


@dataclass(slots=True)
class Engine:
    """A clock for one instance: its prefills and its decodes (request -> remaining tokens)."""

    instance: str
    prefills: list[list[int]] = field(default_factory=list)
    """[request, prompt tokens still to prefill, output tokens]."""
    decodes: dict[int, int] = field(default_factory=dict)


class BusyFleet:
    """A core with `size` instances in the middle of their work, and their clocks."""

    def __init__(
        self, size: int, placement: Placement, seed: int, scheduler: events.Scheduler = events.Scheduler.FCFS
    ) -> None:
        self._dice = Random(seed)
        profile = load_profile(PROFILE)
        self._latency = profile.latency
        tiers = tuple(
            TierConfig(name, ttft_s, tpot_s, batch_tokens=batch_tokens(profile.latency, tpot_s))
            for name, ttft_s, tpot_s, _ in TIERS
        )
        limits = EngineLimits(profile.kv_tokens_max, scheduler=scheduler)
        config = CoreConfig(tiers, tiers[0].name, profile.latency, limits, placement)
        self._chosen: Instance | None = None
        self.core = RouterCore(config, self._place_by(PLACEMENTS[placement]))
        self._tiers = tiers
        self._lengths = shaped_lengths(SHAPES["azure-like"], 4096, seed)
        self._next_request = 0
        self.now = 1.0
        homes = self._homes(size)
        specs = [
            events.InstanceSpec(f"i-{index}", tier.name, events.InstanceState.READY) for index, tier in enumerate(homes)
        ]
        self.core.handle(events.FleetChanged(self.now, specs))
        self._engines = {spec.id: Engine(spec.id) for spec in specs}
        self._fill(homes)
        self.costs = Costs()

    def _homes(self, size: int) -> list[TierConfig]:
        """Tiers of the instances, in the shares of the traffic, at least one each."""
        homes: list[TierConfig] = []
        for tier, (_, _, _, share) in zip(self._tiers, TIERS, strict=True):
            homes += [tier] * max(1, round(size * share))
        return homes[:size]

    def _place_by(self, placement: PlaceBy) -> PlaceBy:
        """The production placement, but for the building of the state, which puts each request where it is told."""

        def place(homes: Homes, request: Request, now: float) -> Choice | None:
            instance = self._chosen
            if instance is None:
                return placement(homes, request, now)
            found = Room(instance, 0.0, 0.0, now, instance.pace.iteration_s)
            return Choice(found, kind_on(instance, request))

        return place

    def _fill(self, homes: Sequence[TierConfig]) -> None:
        """Decodes in the middle of their outputs, then a prompt or two, on each instance."""
        dice = self._dice
        clocks = []
        started, self.now = self.now, self.now + PAST_S + FIRST_TOKEN_S
        for (name, engine), tier in zip(self._engines.items(), homes, strict=True):
            self._chosen = self.core.instances[name]
            low, high = DECODES[self._tiers.index(tier)]
            waiting: list[tuple[float, list[int]]] = []
            for at in sorted(started + dice.random() * PAST_S for _ in range(dice.randint(low, high))):
                self._first_tokens(engine, waiting, at)
                self._send(tier.name, at)
                waiting.append((at, engine.prefills.pop()))
            self._first_tokens(engine, waiting, self.now)
            for request in engine.decodes:
                # What it should have got by now at nine tenths of its TPOT: each is a little ahead of its deadlines.
                age_s = self.now - self.core.requests[request].first_token_at
                tokens = max(1, int(age_s / (0.9 * tier.tpot_s)))
                self.core.handle(events.TokensReceived(self.now, request, tokens))
            for _ in range(dice.randint(0, PREFILLS)):
                self._send(tier.name, self.now)
            clocks.append((self.now + dice.random() * 0.03, name))
        self._chosen = None
        self._clocks = clocks
        heapify(self._clocks)

    def _first_tokens(self, engine: Engine, waiting: list[tuple[float, list[int]]], until: float) -> None:
        while waiting and waiting[0][0] + FIRST_TOKEN_S <= until:
            at, (request, _, output) = waiting.pop(0)
            self.core.handle(events.TokensReceived(at + FIRST_TOKEN_S, request))
            engine.decodes[request] = self._dice.randint(1, output)

    def _send(self, tier: str, now: float) -> int:
        """One arrival. Returns the nanoseconds that the core took to decide."""
        lengths = self._lengths[self._next_request % len(self._lengths)]
        event = events.RequestArrived(now, self._next_request, lengths.prompt_tokens, lengths.output_tokens, tier)
        self._next_request += 1
        # CPU time, so that a neighbour on the machine is not measured; the decision never waits.
        started = thread_time_ns()
        decisions = self.core.handle(event)
        took = thread_time_ns() - started
        for decision in decisions:
            self._carry_out(decision, lengths.prompt_tokens, lengths.output_tokens)
        return took

    def _carry_out(self, decision: Decision, prompt_tokens: int, output_tokens: int) -> None:
        if isinstance(decision, Place):
            self._engines[decision.instance].prefills.append([decision.request, prompt_tokens, output_tokens])

    def run(self, arrivals: int, on_progress: Callable[[int], None]) -> Costs:
        """Measures so many arrivals, at the rate at which requests end, with all tokens and ends between them."""
        dice = self._dice
        # A full collection walks every object of the fleet: the built state is not garbage, and a server freezes it too.
        gc.collect()
        gc.freeze()
        names = [tier.name for tier in self._tiers]
        weights = [share for *_, share in TIERS]
        debt = 0.0
        done = 0
        settling = max(SETTLING_LEAST, int(SETTLING_ITERATIONS * len(self._engines)))
        while done < arrivals:
            ended = self._iterate()
            settling -= 1
            if settling == 0:
                self.costs = Costs()
            # An arrival for each end, at a random moment between two iterations: the fleet stays as busy as it is.
            debt += ended
            while debt >= 1.0 and done < arrivals:
                debt -= 1.0
                took = self._send(dice.choices(names, weights)[0], self.now)
                if settling <= 0:
                    self.costs.arrivals.append(took)
                    done += 1
                    if done % 256 == 0:
                        on_progress(done)
        gc.unfreeze()
        return self.costs

    def _iterate(self) -> int:
        """The next iteration of any engine ends: tokens for all its decodes, a chunk for its prompts. Returns how many ended."""
        at, name = self._clocks[0]
        self.now = at
        engine = self._engines[name]
        core, costs = self.core, self.costs
        over = []
        for request, rest in engine.decodes.items():
            costs.tokens.append(self._timed(events.TokensReceived(at, request)))
            engine.decodes[request] = rest - 1
            if rest <= 1:
                over.append(request)
        for request in over:
            del engine.decodes[request]
            costs.ends.append(self._timed(events.RequestEnded(at, request, events.Outcome.COMPLETED)))
        budget = max(16, core.instances[name].batch_tokens - len(engine.decodes))
        used = 0
        while engine.prefills and used < budget:
            head = engine.prefills[0]
            tokens = min(head[1], budget - used)
            used += tokens
            head[1] -= tokens
            if head[1] == 0:
                engine.prefills.pop(0)
                costs.tokens.append(self._timed(events.TokensReceived(at, head[0])))
                engine.decodes[head[0]] = head[2]
        kv_tokens = core.instances[name].bookings.kv_decode_tokens
        took_s = self._latency.iteration_s(used, 0, len(engine.decodes), kv_tokens)
        heapreplace(self._clocks, (at + took_s, name))
        return len(over)

    def _timed(self, event: events.Event) -> int:
        started = perf_counter_ns()
        decisions = self.core.handle(event)
        took = perf_counter_ns() - started
        for decision in decisions:
            # A held request got its place. Its lengths are not at hand here; any do.
            self._carry_out(decision, 1000, 200)
        return took


def measure(
    size: int,
    arrivals: int,
    placement: Placement,
    seed: int,
    on_progress: Callable[[int], None],
    scheduler: events.Scheduler = events.Scheduler.FCFS,
) -> dict[str, float]:
    """Quantiles in microseconds for a fleet of `size`: of placements, and of the events that are none."""
    gc.collect()  # the fleet before this one is a ring of objects, up to gigabytes
    fleet = BusyFleet(size, placement, seed, scheduler)
    costs = fleet.run(arrivals, on_progress)
    status = fleet.core.status(fleet.now)
    p50, p99 = np.percentile(costs.arrivals, (50.0, 99.0)) / 1000.0
    token_p50, token_p99 = np.percentile(costs.tokens, (50.0, 99.0)) / 1000.0
    end_p50, end_p99 = np.percentile(costs.ends, (50.0, 99.0)) / 1000.0
    requests = sum(instance.requests for instance in status.instances)
    figures = {
        "p50_us": p50,
        "p99_us": p99,
        "token_p50_us": token_p50,
        "token_mean_us": float(np.mean(costs.tokens)) / 1000.0,
        "token_p99_us": token_p99,
        "end_p50_us": end_p50,
        "end_p99_us": end_p99,
        "requests_per_instance": requests / len(status.instances),
        "load_mean": sum(instance.load for instance in status.instances) / len(status.instances),
        "held_share": sum(tier.held for tier in status.tiers) / max(1, sum(tier.arrived for tier in status.tiers)),
    }
    return {name: round(float(value), 3) for name, value in figures.items()}
