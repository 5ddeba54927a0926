"""What the plug-in is told: `--additional-config '{"multislo": {...}}'`. A flag and not a variable: vLLM logs it at its start, it
reaches the engine's own process, and whoever starts engines (a pod, `multislo up`, a user) gives it in one place."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from multislo_perf.latency import LatencyModel
from multislo_perf.profile import LatencyCoefficients, load_profile

PROFILE = "llama-3.1-8b-h200-tp1"
"""Believed at first where nothing is said. It need not be right: the law is learned within seconds."""
TESTED = ("0.32",)
"""Versions of vLLM that the plug-in was tested with. vLLM does not promise that a scheduler written for one works with the next."""


@dataclass(frozen=True, slots=True)
class Settings:
    latency: LatencyModel
    ttft_s: float = inf
    tpot_s: float = inf
    """The SLO of requests that bring none. Infinite: they are served behind the others, as if it were 30 s and 500 ms."""
    untested_versions: bool = False
    async_scheduling: bool = False
    """Plan although iterations overlap. Not tested: it takes a GPU."""


def settings_from(additional: object) -> Settings:
    """Raises ValueError with the field and what is legal, and `ProfileInvalid`."""
    given = additional.get("multislo", {}) if isinstance(additional, Mapping) else {}
    if not isinstance(given, Mapping):
        raise ValueError(f"multislo: {given!r} must be a mapping")
    legal = {"ttft_ms", "tpot_ms", "profile", "latency", "untested_versions", "async_scheduling"}
    if unknown := sorted(set(given) - legal):
        raise ValueError(f"multislo: {', '.join(unknown)}: no such field; there are {', '.join(sorted(legal))}")
    return Settings(
        ttft_s=_seconds(given, "ttft_ms"),
        tpot_s=_seconds(given, "tpot_ms"),
        latency=_latency(given),
        untested_versions=given.get("untested_versions") is True,
        async_scheduling=given.get("async_scheduling") is True,
    )


def _latency(given: Mapping[str, Any]) -> LatencyModel:
    """The law of the field `latency` (the coefficients of a profile, named as in its file), or of the profile that is named."""
    if "latency" in given:
        return LatencyCoefficients.model_validate(given["latency"]).model()
    return load_profile(str(given.get("profile", PROFILE))).latency


def _seconds(given: Mapping[str, Any], name: str) -> float:
    value = given.get(name)
    if value is None:
        return inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
        raise ValueError(f"multislo.{name}: {value!r} must be a number of milliseconds above 0")
    return value / 1000.0


def slo_of(extra_args: object, settings: Settings) -> tuple[float, float, float]:
    """TTFT, TPOT and the second TTFT of a request in seconds from its arrival: its own (`vllm_xargs`, as the router sends them), else the
    default's. What is no number counts as not given: a scheduler cannot refuse a request."""
    own = extra_args if isinstance(extra_args, Mapping) else {}
    ttft_ms, tpot_ms = _number(own.get("slo_ttft_ms")), _number(own.get("slo_tpot_ms"))
    late_ms = _number(own.get("slo_late_ttft_ms"))
    return (
        settings.ttft_s if ttft_ms is None else ttft_ms / 1000.0,
        settings.tpot_s if tpot_ms is None or tpot_ms <= 0.0 else tpot_ms / 1000.0,
        -inf if late_ms is None else late_ms / 1000.0,
    )


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # what is none raises
    except (TypeError, ValueError):
        return None
    return number if number == number else None
