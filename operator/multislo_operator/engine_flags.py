"""The flags of an inference engine: what its tier and the latency profile ask for, the user's own after them. Pure; called by whatever
starts engines, as pods or as processes of one machine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multislo_api.manifest import MultiSLOServing
from multislo_perf.profile import LatencyCoefficients, Profile
from multislo_perf.sizing import batch_tokens

BATCH_TOKENS = "--max-num-batched-tokens"
SEQS = "--max-num-seqs"
LENGTH = "--max-model-len"
POLICY = "--scheduling-policy"
PARALLEL = "--tensor-parallel-size"
SERVED = "--served-model-name"
PLANNED_BY = "--scheduler-cls"
ADDITIONAL = "--additional-config"
PLUGIN = "multislo_engine.vllm.SLOScheduler"
"""The plug-in: it must be installed where vLLM is."""
ADAPTERS = "--lora-modules"
ADAPTER_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank, from its default on."""

WARM_BATCH_TOKENS = 1024
"""Of an instance that is started for the warm pool: any tier may get it."""
SEQS_MAX = 1024
"""What the router believes of every engine. vLLM's own default depends on the GPU: 256 on some."""
EMULATED_SCHEDULERS = {"Stock": "fcfs", "Priority": "priority", "SLOAware": "slo-aware"}
ALIASES = {"-tp": PARALLEL}
"""vLLM's short forms of flags that are given here."""
_SUFFIXES = {"k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}
"""vLLM takes `2k` for 2000 and `2K` for 2048."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where an engine is started for: a tier, or the warm pool (None)."""

    tier: str | None

    def __str__(self) -> str:
        return "the warm pool" if self.tier is None else f"tier {self.tier}"


def wanted_flags(manifest: MultiSLOServing, profile: Profile, tier: str | None) -> dict[str, str]:
    """What an engine of this tier (None: of the warm pool) should be started with, in vLLM's words. Flags that every engine of a type has
    whatever its tier (ports, names) are not among them."""
    spec = manifest.spec
    tpot_s = next((t.slo.tpot_s for t in spec.tiers if t.name == tier), None)
    budget = WARM_BATCH_TOKENS if tpot_s is None else batch_tokens(profile.latency, tpot_s)
    # vLLM does not start where more sequences than tokens may be in an iteration; the budget that the user gives counts.
    real_budget = flag_value(spec.engine.args, BATCH_TOKENS) or budget
    flags = {BATCH_TOKENS: str(budget), SEQS: str(min(SEQS_MAX, real_budget))}
    if spec.model.max_length is not None:
        flags[LENGTH] = str(spec.model.max_length)
    if spec.engine.type == "Emulated":
        return flags
    # "priority" only where asked for: stock vLLM refuses a priority that is not 0 otherwise.
    if spec.engine.scheduler == "Priority":
        flags[POLICY] = "priority"
    if spec.engine.scheduler == "SLOAware":
        flags |= {PLANNED_BY: PLUGIN, ADDITIONAL: json.dumps({"multislo": _plugin_config(manifest, profile)})}
    if spec.engine.accelerator.per_instance > 1:
        flags[PARALLEL] = str(spec.engine.accelerator.per_instance)
    return flags


def batch_tokens_of(manifest: MultiSLOServing, profile: Profile, tier: str | None) -> int:
    """`max_num_batched_tokens` that an engine of this tier really gets."""
    given = flag_value(manifest.spec.engine.args, BATCH_TOKENS)
    return given or int(wanted_flags(manifest, profile, tier)[BATCH_TOKENS])


def vllm_args(
    manifest: MultiSLOServing, profile: Profile, tier: str | None, listening: Mapping[str, str]
) -> tuple[str, ...]:
    """All that follows `vllm serve MODEL`. `listening`: host, port and how it stops, by flag."""
    names = (SERVED, *manifest.spec.model.served_names, *_adapter_args(manifest))
    flags = {**wanted_flags(manifest, profile, tier), **listening}
    # The plug-in was not tested with overlapping iterations and would leave all to vLLM.
    switches = ("--no-async-scheduling",) if manifest.spec.engine.scheduler == "SLOAware" else ()
    return (*names, *_words(flags), *switches, *manifest.spec.engine.args)


def _plugin_config(manifest: MultiSLOServing, profile: Profile) -> dict[str, object]:
    """The same for all engines of a fleet: the default tier's SLO, for requests that come without one, and the profile's law."""
    spec = manifest.spec
    slo = next(tier.slo for tier in spec.tiers if tier.name == spec.default_tier)
    return {
        "ttft_ms": 1000.0 * slo.ttft_s,
        "tpot_ms": 1000.0 * slo.tpot_s,
        "latency": LatencyCoefficients.of(profile.latency).model_dump(by_alias=True),
    }


def emulate_args(
    manifest: MultiSLOServing,
    profile: Profile,
    tier: str | None,
    seed: int,
    profile_at: str,
    listening: Mapping[str, str],
) -> tuple[str, ...]:
    """All that follows `multislo emulate`. `profile_at`: the profile's name or path, where the engine runs."""
    spec = manifest.spec
    emulation = spec.engine.emulation
    own = {
        "--profile": profile_at,
        "--model": spec.model.name,
        "--scheduler": EMULATED_SCHEDULERS[spec.engine.scheduler],
        "--slow-down": repr(emulation.slow_down),
        "--jitter": repr(emulation.jitter),
        "--seed": str(seed),
        "--startup": repr(startup_s(manifest, profile)),
    }
    names = [part for name in spec.model.served_names for part in ("--served-name", name)]
    adapters = [part for adapter in spec.engine.adapters for part in (ADAPTERS, f"{adapter.name}={adapter.path}")]
    return (
        *_words({**own, **wanted_flags(manifest, profile, tier), **listening}),
        *names,
        *adapters,
        *spec.engine.args,
    )


def _adapter_args(manifest: MultiSLOServing) -> tuple[str, ...]:
    """A batch may hold all adapters at once: with vLLM's default of one, requests for another adapter would wait for it."""
    adapters = manifest.spec.engine.adapters
    if not adapters:
        return ()
    rank = next(rank for rank in ADAPTER_RANKS if rank >= max(adapter.rank for adapter in adapters))
    modules = [f"{adapter.name}={adapter.path}" for adapter in adapters]
    return ("--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(rank), ADAPTERS, *modules)


def startup_s(manifest: MultiSLOServing, profile: Profile) -> float:
    """From the start of an engine to its readiness, as far as is known before."""
    engine = manifest.spec.engine
    if engine.type == "Emulated" and engine.emulation.startup_s is not None:
        return engine.emulation.startup_s
    return profile.startup_s


def fighting_flags(manifest: MultiSLOServing, profile: Profile, listening: Mapping[str, str]) -> tuple[str, ...]:
    """Which of the user's own flags win over one that a tier, or its router, needs: a line for each, for people. Not an error: what the
    user says is done."""
    spec = manifest.spec
    homes = [Home(tier.name) for tier in spec.tiers]
    if spec.scaling.warm_pool.max > 0:
        homes.append(Home(None))
    given = given_flags(spec.engine.args)
    lines = []
    if SERVED in given and spec.engine.type == "VLLM":
        names = " ".join(spec.model.served_names)
        lines.append(f"{SERVED}: the routers let {names} in, engines run with {given[SERVED]} (spec.engine.args)")
    if ADAPTERS in given:
        told = " ".join(adapter.name for adapter in spec.engine.adapters) or "none"
        lines.append(f"{ADAPTERS}: the routers know {told} (spec.engine.adapters), engines run with spec.engine.args")
    for flag, runs in given.items():
        for wanted, at in _by_value({home: wanted_flags(manifest, profile, home.tier).get(flag) for home in homes}):
            if number(runs) != number(wanted):
                lines.append(f"{flag}: {at} would have {wanted}, runs with {runs} (spec.engine.args)")
        if flag in listening and number(runs) != number(listening[flag]):
            lines.append(f"{flag}: every engine should have {listening[flag]}, runs with {runs} (spec.engine.args)")
    return tuple(lines)


def given_flags(args: Sequence[str]) -> dict[str, str]:
    """The user's flags with their last values, under vLLM's long names; a flag without a value has an empty one."""
    flags = {}
    for index, arg in enumerate(args):
        if not arg.startswith("-"):
            continue
        flag, equals, text = arg.partition("=")
        following = args[index + 1] if index + 1 < len(args) else ""
        flags[_long(flag)] = text if equals else "" if following.startswith("--") else following
    return flags


def flag_value(args: Sequence[str], name: str) -> int | None:
    """The last value of a numeric flag, written `--flag N` or `--flag=N`; None where it is absent or no number."""
    found = None
    for index, arg in enumerate(args):
        flag, equals, text = arg.partition("=")
        if _long(flag) != name:
            continue
        if not equals and index + 1 < len(args):
            text = args[index + 1]
        value = number(text)
        if isinstance(value, int) and value > 0:
            found = value
    return found


def number(text: str | None) -> int | str | None:
    """A flag's value as a number where it is one, in vLLM's ways of writing it; else as it stands."""
    if not text or not text.isascii():
        return text
    digits, factor = (text[:-1], _SUFFIXES[text[-1]]) if text[-1] in _SUFFIXES else (text, 1)
    return int(digits) * factor if digits.isdigit() else text


def _long(flag: str) -> str:
    return ALIASES.get(flag) or ("--" + flag[2:].replace("_", "-") if flag.startswith("--") else flag)


def _words(flags: Mapping[str, str]) -> list[str]:
    return [word for pair in flags.items() for word in pair]


def _by_value(values: Mapping[Home, str | None]) -> list[tuple[str, str]]:
    """(value, who wants it): homes that want the same in one line."""
    wanted: dict[str, list[Home]] = {}
    for home, value in values.items():
        if value is not None:
            wanted.setdefault(value, []).append(home)
    return [(value, " and ".join(map(str, homes))) for value, homes in wanted.items()]
