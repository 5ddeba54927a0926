"""What a resource asks for: its manifest and its latency profile, read and checked together; or why it cannot be used. Pure; used by
`reconcile`."""

from dataclasses import dataclass, replace

from multislo_api.manifest import ManifestInvalid, MultiSLOServing, ProfileConfigMap, ProfileFile, manifest_from_object
from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.seen import Seen
from multislo_perf.profile import Profile, ProfileInvalid, load_document, parse_document
from multislo_perf.sizing import unattainable

EXTERNAL = "External"


@dataclass(frozen=True, slots=True)
class Wanted:
    manifest: MultiSLOServing
    profile: Profile
    profile_text: str
    external: bool
    """Another actor sets the replicas of all tiers."""
    ignored: tuple[str, ...] = ()
    """Fields of manifest and profile that this version does not know, by their paths."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """Nothing that runs is changed by it, and nothing new is made of it."""

    reason: str
    """CamelCase: the reason of the conditions."""
    message: str
    of_profile: bool = True
    """Whether it is the profile, or the profile against the SLOs; the manifest itself otherwise."""
    manifest: MultiSLOServing | None = None
    """Where it could be read: whose pods come first, within which budget, when those that are lost are put back."""


def read(seen: Seen) -> Wanted | Unusable:
    """The manifest of a resource as the API server holds it."""
    resource = seen.resource
    ignored: list[str] = []
    try:
        manifest = manifest_from_object(resource, ignored)
    except ManifestInvalid as error:
        return Unusable("ManifestInvalid", "; ".join(error.problems), of_profile=False)
    profile = _profile(manifest, seen.profile_text, ignored)
    if isinstance(profile, Unusable):
        return replace(profile, manifest=manifest)
    document, text = profile
    misses = _misses(manifest, document)
    if misses:
        return Unusable("SLOUnattainable", misses, manifest=manifest)
    annotations = resource["metadata"].get("annotations") or {}
    return Wanted(manifest, document, text, annotations.get(names.SCALING) == EXTERNAL, tuple(ignored))


def _profile(manifest: MultiSLOServing, text: str | None, ignored: list[str]) -> tuple[Profile, str] | Unusable:
    named = manifest.spec.profile
    if isinstance(named, ProfileFile):
        return Unusable(
            "ProfileMissing",
            "spec.profile.file: a cluster has no files; use a shipped profile's name or {configMap: NAME}",
        )
    try:
        if isinstance(named, ProfileConfigMap):
            if text is None:
                return Unusable(
                    "ProfileMissing",
                    f'spec.profile.configMap: there is no ConfigMap "{named.config_map}" with the key profile.yaml in namespace '
                    f"{manifest.metadata.namespace}",
                )
            newer: list[str] = []
            document = parse_document(text, f"ConfigMap {named.config_map}", newer)
            ignored += [f"{path} in ConfigMap {named.config_map}" for path in newer]
        else:
            document = load_document(named)
    except ProfileInvalid as error:
        return Unusable("ProfileInvalid", "; ".join(str(error).splitlines()))
    return document.profile(), document.text()


def _misses(manifest: MultiSLOServing, profile: Profile) -> str:
    """Which SLOs an idle instance would miss, in words; empty where it meets all."""
    latency = profile.latency
    engine = manifest.spec.engine
    if engine.type == "Emulated":
        latency = latency.slower(engine.emulation.slow_down)
    return "; ".join(
        f"tier {tier.name}: {miss.slo} {1e3 * miss.asked_s:g} ms cannot be met, an idle instance of profile {profile.name} needs "
        f"{1e3 * miss.idle_s:.1f} ms"
        for tier in manifest.spec.tiers
        for miss in unattainable(latency, tier.slo.ttft_s, tier.slo.tpot_s)
    )
