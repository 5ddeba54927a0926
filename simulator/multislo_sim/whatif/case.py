"""A manifest with its profile for the simulator: the router's belief, the engines' truth, and the autoscaler's view. Called by all
code that simulates a manifest's fleet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from multislo_api.manifest import MultiSLOServing, ProfileConfigMap, ProfileFile
from multislo_operator.decide.fleet import FleetSpec
from multislo_operator.engine_flags import batch_tokens_of, startup_s
from multislo_operator.observe import fleet_spec
from multislo_perf.latency import LatencyModel
from multislo_perf.profile import Profile, ProfileInvalid, shipped_profiles
from multislo_router.core.config import CoreConfig
from multislo_router.from_manifest import core_config, profile_of
from multislo_sim.fleet import Scenario
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.tiers import idle_can_meet

Counts = Mapping[str, int]
"""Instances of each tier, by name."""
_NO_SCHEDULE = datetime(1970, 1, 1, tzinfo=UTC)
"""Floors by the clock are left out (`Case.unscheduled`): a trace's stamps have no time zone."""


@dataclass(frozen=True, slots=True)
class Case:
    """One fleet of a manifest."""

    name: str
    manifest: MultiSLOServing
    profile: Profile

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names, in the manifest's order."""
        return tuple(tier.name for tier in self.manifest.spec.tiers)

    @property
    def per_instance(self) -> int:
        """Accelerators of one instance."""
        return self.manifest.spec.engine.accelerator.per_instance

    @property
    def truth(self) -> LatencyModel:
        """How the engines behave: as the profile says, but for emulated ones that the manifest makes slower."""
        engine = self.manifest.spec.engine
        factor = engine.emulation.slow_down if engine.type == "Emulated" else 1.0
        return self.profile.latency if factor == 1.0 else self.profile.latency.slower(factor)

    def core(self) -> CoreConfig:
        """What the router is told; token budgets as the engines are really started, the user's own flags included."""
        told = core_config(self.manifest, self.profile)
        tiers = tuple(replace(tier, batch_tokens=self.batch_tokens(tier.name)) for tier in told.tiers)
        return replace(told, tiers=tiers, engine=replace(told.engine, warm_batch_tokens=self.batch_tokens(None)))

    def batch_tokens(self, tier: str | None) -> int:
        return batch_tokens_of(self.manifest, self.profile, tier)

    def slo(self, tier: str) -> tuple[float, float]:
        """TTFT and TPOT in seconds."""
        slo = next(t.slo for t in self.manifest.spec.tiers if t.name == tier)
        return slo.ttft_s, slo.tpot_s

    def spec(self) -> FleetSpec:
        """What the autoscaler is told."""
        scaling = self.manifest.spec.scaling.model_copy(update={"schedule": []})
        bare = self.manifest.model_copy(
            update={"spec": self.manifest.spec.model_copy(update={"scaling": scaling})},
        )
        return fleet_spec(bare, self.profile, _NO_SCHEDULE)

    @property
    def startup_s(self) -> float:
        return startup_s(self.manifest, self.profile)

    def beyond(self, request: Request) -> bool:
        """Whether no instance of the fleet could serve the request in time, not even with nothing else to do."""
        ttft_s, tpot_s = self.slo(request.tier or self.manifest.spec.default_tier)
        # Any tier's instance may take it: the one with the largest budget is the first to be done with a prompt.
        budget = max(self.batch_tokens(tier) for tier in self.tiers)
        return not idle_can_meet(self.truth, budget, request, ttft_s, tpot_s)

    def scenario(self, counts: Counts) -> Scenario:
        """A fleet of so many instances, all ready."""
        homes = tuple(name for name in self.tiers for _ in range(counts[name]))
        return Scenario(self.core(), homes, self.truth)


def case_of(name: str, manifest: MultiSLOServing) -> Case:
    """Raises `ProfileInvalid`, also for a profile in a cluster."""
    profile = manifest.spec.profile
    if isinstance(profile, ProfileConfigMap):
        where = f"{name}: spec.profile.configMap"
        raise ProfileInvalid(where, [f'"{profile.config_map}" is in a cluster; give --profile NAME or --profile PATH'])
    return Case(name, manifest, profile_of(manifest.spec))


def with_profile(manifest: MultiSLOServing, profile: str | None) -> MultiSLOServing:
    """The manifest with another profile, a shipped one's name or a path; None: its own. One in a cluster cannot be read here."""
    if profile is None:
        return manifest
    named = profile if profile in shipped_profiles() else ProfileFile(file=profile)
    return manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"profile": named})})


def fitting(case: Case, requests: Sequence[Request]) -> tuple[list[Request], int]:
    """The requests that the router would take (by `spec.model.maxLength`, else by the KV cache), and how many are too long."""
    most = min(case.profile.kv_tokens_max, case.manifest.spec.model.max_length or case.profile.kv_tokens_max)
    kept = [request for request in requests if request.prompt_tokens + request.output_tokens <= most]
    return kept, len(requests) - len(kept)
