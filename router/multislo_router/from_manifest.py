"""From a manifest and its latency profile to what the router is told: called by `multislo router`, and by whatever runs the same core
elsewhere (the simulator, a planner), so that both believe the same."""

import os
from pathlib import Path

from multislo_api.manifest import ApiKeys, Engine, MultiSLOServing, ProfileConfigMap, ProfileFile, Spec
from multislo_perf.profile import Profile, load_profile
from multislo_perf.sizing import batch_tokens
from multislo_router.core.config import CoreConfig, EngineLimits, Overload, Placement, TierConfig
from multislo_router.core.events import Scheduler
from multislo_router.shell.keys import keys_in
from multislo_router.shell.settings import ShellSettings

SCHEDULERS = {"Stock": Scheduler.FCFS, "Priority": Scheduler.PRIORITY, "SLOAware": Scheduler.SLO_AWARE}
KEYS_BYTES_MAX = 1_000_000
"""Of a file of keys: one of 10,000 has 500 KB."""


class Unusable(Exception):
    """Something that the manifest points at cannot be used here; the message names the field, and says what to do."""


def profile_of(spec: Spec) -> Profile:
    """The profile that the manifest names. Raises `ProfileInvalid`, or `Unusable` for one in a cluster."""
    if isinstance(spec.profile, ProfileConfigMap):
        raise Unusable(
            f'spec.profile.configMap: "{spec.profile.config_map}" is in a cluster; '
            "a router started by hand takes a shipped profile's name, {file: PATH}, or the option --profile"
        )
    return load_profile(spec.profile.file if isinstance(spec.profile, ProfileFile) else spec.profile)


def core_config(manifest: MultiSLOServing, profile: Profile) -> CoreConfig:
    """What the core is told. Tiers keep the manifest's order."""
    spec = manifest.spec
    tiers = tuple(
        TierConfig(
            name=tier.name,
            ttft_s=tier.slo.ttft_s,
            tpot_s=tier.slo.tpot_s,
            overload=Overload(tier.overload),
            latest=tier.latest,
            batch_tokens=batch_tokens(profile.latency, tier.slo.tpot_s),
        )
        for tier in spec.tiers
    )
    return CoreConfig(
        tiers=tiers,
        default_tier=spec.default_tier,
        latency=profile.latency,
        engine=engine_limits(spec.engine, profile),
        placement=Placement(spec.placement),
        length_max=spec.model.max_length,
    )


def engine_limits(engine: Engine, profile: Profile) -> EngineLimits:
    """What every engine is started with; the user's own flags win here as they do at the engine."""
    seqs_max = _flag(engine.args, "--max-num-seqs")
    limits = EngineLimits(kv_tokens_max=profile.kv_tokens_max, scheduler=SCHEDULERS[engine.scheduler])
    if seqs_max is None:
        return limits
    return EngineLimits(limits.kv_tokens_max, seqs_max, limits.scheduler, limits.warm_batch_tokens)


def shell_settings(manifest: MultiSLOServing, api_keys: tuple[bytes, ...] = ()) -> ShellSettings:
    """What the data path is told."""
    model, own = manifest.spec.model, manifest.spec.router
    return ShellSettings(
        served_names=tuple(model.served_names),
        adapters=tuple((adapter.name, adapter.path) for adapter in manifest.spec.engine.adapters),
        service_tiers=service_tiers(manifest.spec),
        api_keys=api_keys,
        body_max_bytes=own.body_max_mib << 20,
        held_max_bytes=max(own.requests_max_mib, own.body_max_mib) << 20,
        idle_timeout_s=own.idle_timeout_s,
        stream_keep_alive_s=own.stream_keep_alive_s,
        cors_origins=() if own.cors is None else tuple(map(_origin, own.cors.origins)),
        extra_paths=tuple((passed.path, tuple(passed.methods)) for passed in own.paths),
        tokenizer=None if model.tokenizer is None else Path(model.tokenizer),
    )


def service_tiers(spec: Spec) -> dict[str, str]:
    """What each `service_tier` means that is no tier's name. A tier that bears one of OpenAI's names keeps it, unless the manifest says
    otherwise; `scale` (OpenAI's) and `standard_only` (Anthropic's) have no meaning of their own here."""
    tiers = sorted(spec.tiers, key=lambda tier: tier.slo.tpot_s)
    means = dict.fromkeys(("auto", "default", "scale", "standard_only"), spec.default_tier)
    means |= {"flex": tiers[-1].name, "priority": tiers[0].name}
    means |= {tier.name: tier.name for tier in tiers if tier.name in means}
    return means | spec.service_tiers.model_dump(exclude_none=True)


def api_keys_of(keys: ApiKeys | None) -> tuple[bytes, ...]:
    """The keys that the manifest points at; none where it asks for none. Raises `Unusable`."""
    if keys is None:
        return ()
    if keys.secret is not None:
        raise Unusable(
            f'spec.router.apiKeys.secret: "{keys.secret}" is in a cluster; a router started by hand takes --api-key-file'
        )
    if keys.file is not None:
        return read_api_keys(Path(keys.file), "spec.router.apiKeys.file")
    assert keys.env is not None, "the manifest holds exactly one of the three"
    value = os.environb.get(keys.env.encode())
    if value is None:
        raise Unusable(f"spec.router.apiKeys.env: the variable {keys.env} is not set; it must hold at least one key")
    return _keys(value, f"spec.router.apiKeys.env: {keys.env}")


def read_api_keys(path: Path, named: str) -> tuple[bytes, ...]:
    """The keys in a file; `named` is who named it, for the message. Raises `Unusable`."""
    try:
        with path.open("rb") as file:
            content = file.read(KEYS_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise Unusable(f'{named}: "{path}" cannot be read: {reason}') from None
    if len(content) > KEYS_BYTES_MAX:
        raise Unusable(f'{named}: "{path}" must have at most {KEYS_BYTES_MAX} bytes')
    return _keys(content, f'{named}: "{path}"')


def _keys(content: bytes, named: str) -> tuple[bytes, ...]:
    try:
        return keys_in(content)
    except ValueError as error:
        raise Unusable(f"{named}: {error}") from None


def _origin(text: str) -> str:
    """As browsers write it: in lower case, without the scheme's own port."""
    text = text.lower()
    for scheme, port in (("http://", ":80"), ("https://", ":443")):
        if text.startswith(scheme):
            text = text.removesuffix(port)
    return text


def _flag(args: list[str], name: str) -> int | None:
    """The last value of a numeric flag, written `--flag N` or `--flag=N`; None where it is absent or no number (the engine's to say)."""
    found = None
    for index, arg in enumerate(args):
        flag, _, text = arg.partition("=")
        if arg == name and index + 1 < len(args):
            text = args[index + 1]
        if flag == name and text.isascii() and text.isdigit() and int(text) > 0:
            found = int(text)
    return found
