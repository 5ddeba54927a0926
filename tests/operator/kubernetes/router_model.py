"""Toy routers: each holds requests on instances that it was told are ready, and answers with a fleet snapshot. Used by `cluster_life`."""

import random
from collections import defaultdict
from dataclasses import dataclass, field

from multislo_api.fleet import FleetSnapshot, InstanceEntry, InstanceList, InstanceView, LatencyView, TierView

ROOM = 6
"""Requests that one instance serves at a time."""
LENGTH_S = (0.5, 6.0)
PATIENCE_S = 20.0
AVERAGE_S = 10.0


@dataclass(slots=True)
class Router:
    dice: random.Random
    tiers: tuple[str, ...]
    started_at: float
    fleet: dict[str, InstanceEntry] = field(default_factory=dict)
    generation: int = 0
    held: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Ends of the requests on each instance."""
    pending: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Arrivals of those that wait, by tier."""
    rates: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    means: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    failed: set[str] = field(default_factory=set)
    refused: int = 0
    kv_tokens_max: int = 141_000
    """Of each engine, as it says itself."""

    def tell(self, fleet: InstanceList) -> None:
        self.fleet = {entry.id: entry for entry in fleet.instances}
        self.generation += 1

    def arrive(self, tier: str, now: float) -> None:
        if tier in self.tiers:
            self.pending[tier].append(now)

    def step(self, now: float, step_s: float, up: set[str], arrived: dict[str, int]) -> None:
        """`up`: the instances that answer."""
        share = min(1.0, step_s / AVERAGE_S)
        for tier in self.tiers:
            self.rates[tier] += share * (arrived.get(tier, 0) / step_s - self.rates[tier])
        for instance in list(self.held):
            self.held[instance] = [end for end in self.held[instance] if end > now] if instance in up else []
            if not self.held[instance]:
                del self.held[instance]
        self.failed = {id for id, entry in self.fleet.items() if entry.state != "starting" and id not in up}
        for id in self.fleet:
            self.means[id] += share * (len(self.held.get(id, ())) / ROOM - self.means[id])
        for tier in self.tiers:
            waiting = [at for at in self.pending[tier] if now - at < PATIENCE_S]
            self.refused += len(self.pending[tier]) - len(waiting)
            while waiting and (instance := self._place(tier)) is not None:
                waiting.pop(0)
                self.held[instance].append(now + self.dice.uniform(*LENGTH_S))
            self.pending[tier] = waiting

    def _place(self, tier: str) -> str | None:
        open_ = [
            entry
            for entry in self.fleet.values()
            if entry.state == "ready"
            and entry.tier is not None
            and entry.id not in self.failed
            and len(self.held.get(entry.id, ())) < ROOM
        ]
        if not open_:
            return None
        return min(open_, key=lambda entry: (entry.tier != tier, len(self.held.get(entry.id, ())), entry.id)).id

    @property
    def requests(self) -> int:
        return sum(map(len, self.held.values()))

    def snapshot(self, now: float) -> FleetSnapshot:
        return FleetSnapshot(
            at=now,
            uptime_s=now - self.started_at,
            model="llama",
            placement="toy",
            tiers=[self._tier(tier, now) for tier in self.tiers],
            instances=[self._instance(entry) for entry in self.fleet.values()],
            generation=self.generation,
        )

    def _tier(self, name: str, now: float) -> TierView:
        pending = self.pending[name]
        return TierView(
            name=name,
            ttft_s=0.3,
            tpot_s=0.025,
            pending=len(pending),
            pending_oldest_s=now - pending[0] if pending else 0.0,
            pending_in_time=len(pending),
            pending_in_time_oldest_s=now - pending[0] if pending else 0.0,
            in_flight=self.requests,
            arrival_rate=self.rates[name],
            work_rate=self.rates[name] * sum(LENGTH_S) / 2 / ROOM,
            work_rate_trend=0.0,
            requests_met=0,
            requests_missed=0,
            tokens_met=0,
            tokens_missed=0,
            given_up=0,
            out_of_reach=0,
            refused=self.refused,
            attainment=None,
            ttft=LatencyView(),
            tpot=LatencyView(),
        )

    def _instance(self, entry: InstanceEntry) -> InstanceView:
        requests = len(self.held.get(entry.id, ()))
        return InstanceView(
            id=entry.id,
            url=entry.url,
            tier=entry.tier,
            # As the real router says it: a drain is a drain even where the instance does not answer.
            state="failed" if entry.id in self.failed and entry.state == "ready" else entry.state,
            load=requests / ROOM,
            load_mean=self.means[entry.id],
            requests=requests,
            prefills=0,
            decodes=requests,
            kv_tokens=requests,
            kv_tokens_reported=None,
            kv_tokens_max=self.kv_tokens_max,
            iteration_predicted_s=0.02,
            calibration=1.0,
            empty_s=0.0 if requests else 1.0,
        )
