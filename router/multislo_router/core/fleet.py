"""The instances that the router may place on, by name and on their ladders, as the fleet's own events leave them. Kept by `machine`;
placements see the ladders alone."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from multislo_router.core.bookings import Bookings
from multislo_router.core.config import CoreConfig
from multislo_router.core.events import InstanceReported, InstanceSpec
from multislo_router.core.instance import BookingsOf, Instance
from multislo_router.core.ladder import Ladder
from multislo_router.core.placement import Homes
from multislo_router.core.tier import Tier

STALE_S: Final = 0.1
"""A belief older than this is brought up to date at the next arrival (no token has come to do it)."""
FRESHEN_MAX: Final = 16
"""So many at once: the bound on an arrival's cost."""


class Fleet:
    """What was told of the engine servers, and each one's place by its load."""

    def __init__(self, tiers: Sequence[Tier], config: CoreConfig, bookings_of: BookingsOf = Bookings) -> None:
        """`tiers` from the tightest to the loosest."""
        self.instances: dict[str, Instance] = {}
        self.homes = Homes([Ladder() for _ in tiers], Ladder(), config.engine.scheduler)
        self.generation = 0
        """How often the fleet was told."""
        self.batch_tokens_largest = max([tier.batch_tokens for tier in config.tiers])
        self.kv_tokens_largest = config.engine.kv_tokens_max
        """What the largest KV cache can hold, by what engines say of theirs; without instances, by the profile."""
        self._by_age: OrderedDict[Instance, None] = OrderedDict()
        """Placeable instances with requests, the one that was refreshed longest ago first; others may be among them."""
        self._config = config
        self._bookings_of = bookings_of
        self._tiers = {tier.name: tier for tier in tiers}
        self._tpots = [tier.tpot_s for tier in tiers]

    @property
    def placeable(self) -> int:
        return sum([instance.placeable for instance in self.instances.values()])

    def change(self, specs: Sequence[InstanceSpec], now: float) -> None:
        """Take the fleet as told. An instance that is gone or restarted is forgotten; what runs there ends by events of its own."""
        self.generation += 1
        told = {spec.id for spec in specs}
        for id in [id for id in self.instances if id not in told]:
            self._unlist(self.instances.pop(id))
        for spec in specs:
            tier = self._tiers[spec.tier] if spec.tier is not None else None
            instance = self.instances.get(spec.id)
            if instance is not None and instance.spec == spec:
                continue
            if instance is not None:
                self._unlist(instance)
            if instance is None or instance.spec.epoch != spec.epoch:
                config = self._config
                instance = Instance(spec, tier, self._tpots, config.latency, config.engine, now, self._bookings_of)
                self.instances[spec.id] = instance
            instance.spec = spec
            instance.tier = tier
            self._list(instance)
            self.batch_tokens_largest = max(self.batch_tokens_largest, instance.batch_tokens)
        self._measure_kv()

    def fail(self, id: str) -> None:
        """Nothing is placed there until it is revived."""
        instance = self.instances.get(id)
        if instance is not None:
            instance.failed = True
            self._unlist(instance)

    def revive(self, id: str, now: float) -> Instance | None:
        """The instance, if it had failed."""
        instance = self.instances.get(id)
        if instance is None or not instance.failed:
            return None
        instance.failed = False
        instance.heard_at = now
        self._list(instance)
        return instance

    def reported(self, instance: Instance, report: InstanceReported) -> None:
        """An engine has said how it is."""
        size = instance.limits.kv_tokens_max
        instance.reported(report, report.now)
        if instance.limits.kv_tokens_max != size:
            self._measure_kv()
        self.refreshed(instance)

    def _measure_kv(self) -> None:
        believed = self._config.engine.kv_tokens_max
        sizes = [instance.limits.kv_tokens_max for instance in self.instances.values()]
        self.kv_tokens_largest = max(sizes, default=believed)

    def refreshed(self, instance: Instance) -> None:
        """An instance is up to date: put it where its load says that it belongs now."""
        if instance.bucket >= 0:
            self._ladder(instance).move(instance)
            self._by_age[instance] = None
            self._by_age.move_to_end(instance)

    def freshen(self, now: float) -> None:
        """Bring up to date, oldest first, instances from which no token has come for a while. O(1): at most `FRESHEN_MAX`."""
        by_age = self._by_age
        for _ in range(FRESHEN_MAX):
            instance = next(iter(by_age), None)
            if instance is None or now - instance.refreshed_at <= STALE_S:
                return
            if instance.bookings.requests:
                instance.refresh(now)
                self.refreshed(instance)
            else:
                del by_age[instance]  # idle: nothing of it changes with time

    def list_anew(self, known: Iterable[Instance]) -> None:
        """Put every instance where it belongs, whatever the ladders say; `known` are all that may be on one."""
        for ladder in (*self.homes.tiers, self.homes.warm):
            ladder.clear()
        self._by_age.clear()
        for instance in known:
            instance.bucket = -1
        for instance in self.instances.values():
            self._list(instance)
            self.refreshed(instance)

    def refresh(self, now: float) -> None:
        """Bring every instance up to date. O(fleet)."""
        for instance in self.instances.values():
            instance.refresh(now)
            self.refreshed(instance)

    def _ladder(self, instance: Instance) -> Ladder:
        return self.homes.warm if instance.tier is None else self.homes.tiers[instance.tier.index]

    def _list(self, instance: Instance) -> None:
        if instance.bucket < 0 and instance.placeable:
            self._ladder(instance).add(instance)

    def _unlist(self, instance: Instance) -> None:
        if instance.bucket >= 0:
            self._ladder(instance).remove(instance)
            self._by_age.pop(instance, None)
