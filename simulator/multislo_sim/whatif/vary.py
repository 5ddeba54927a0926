"""`--vary`:changes of a manifest and of its traffic in one line. Called by the what-if's command.

tiers.realtime.slo.tpot=30ms                        another SLO
profile=llama-3.1-8b-h100-tp1                       another accelerator
tiers.gold={slo: {ttft: 200ms, tpot: 15ms}}         a tier more (null: one less)
rate-factor=2 · shares.gold=5                       other traffic
engine.scheduler=SLOAware; scaling.acceleratorsMax=8    two changes in one row
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import yaml

from multislo_api.manifest import ManifestInvalid, MultiSLOServing, manifest_from


class VaryInvalid(ValueError):
    """The change cannot be made; the message names it, and what is legal."""


RATE_FACTOR, SHARES = "rate-factor", "shares"


@dataclass(frozen=True, slots=True)
class Varied:
    """The manifest after a change, and the change of the traffic."""

    manifest: MultiSLOServing
    rate_factor: float | None
    shares: Mapping[str, float]


def varied(manifest: MultiSLOServing, text: str) -> Varied:
    """The manifest with `PATH=VALUE; PATH=VALUE`: paths below `spec`, a tier by its name, values as in YAML. Raises VaryInvalid."""
    document: dict[str, Any] = deepcopy(manifest.model_dump(mode="json", by_alias=True, exclude_unset=True))
    rate_factor: float | None = None
    shares: dict[str, float] = {}
    for change in text.split(";"):
        path, equals, written = (part.strip() for part in change.partition("="))
        if not path or not equals:
            raise VaryInvalid(f"--vary {change.strip()!r}: must be PATH=VALUE, such as tiers.realtime.slo.tpot=30ms")
        value = _value(change, written)
        steps = path.removeprefix("spec.").split(".")
        if steps == [RATE_FACTOR]:
            rate_factor = _number(change, value)
        elif steps[0] == SHARES and len(steps) == 2:
            shares[steps[1]] = _number(change, value)
        else:
            _set(document["spec"], steps, value, f"--vary {change.strip()!r}")
    try:
        return Varied(manifest_from(document, f"--vary {text!r}"), rate_factor, shares)
    except ManifestInvalid as error:
        raise VaryInvalid(str(error)) from None


def _value(change: str, written: str) -> Any:
    try:
        return yaml.safe_load(written)
    except yaml.YAMLError:
        raise VaryInvalid(f"--vary {change.strip()!r}: {written!r} is not a YAML value") from None


def _number(change: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1e9:
        raise VaryInvalid(f"--vary {change.strip()!r}: {value!r} must be a number of at least 0")
    return float(value)


def _set(spec: dict[str, Any], steps: list[str], value: Any, where: str) -> None:
    """What is wrong with a name below a tier or elsewhere, the manifest's own check says."""
    if steps[0] == "tiers" and len(steps) > 1:
        return _set_tier(spec["tiers"], steps[1], steps[2:], value, where)
    at = spec
    for step in steps[:-1]:
        inner = at.setdefault(step, {})
        if not isinstance(inner, dict):
            raise VaryInvalid(f"{where}: {step} is {inner!r} and has no {steps[-1]}")
        at = inner
    if value is None:
        at.pop(steps[-1], None)
    else:
        at[steps[-1]] = value


def _set_tier(tiers: list[dict[str, Any]], name: str, steps: list[str], value: Any, where: str) -> None:
    tier = next((tier for tier in tiers if tier["name"] == name), None)
    if not steps and value is None and tier is not None:
        tiers.remove(tier)
    elif not steps and isinstance(value, dict):
        whole = {"name": name, **value}
        if tier is None:
            tiers.append(whole)
        else:
            tiers[tiers.index(tier)] = whole
    elif tier is None:
        names = ", ".join(tier["name"] for tier in tiers)
        raise VaryInvalid(
            f"{where}: {name!r} must be a tier of the manifest ({names}); a new one is added whole: "
            f"tiers.{name}={{slo: {{ttft: 500ms, tpot: 50ms}}}}"
        )
    elif not steps:
        raise VaryInvalid(
            f"{where}: a tier must be a mapping such as {{slo: {{ttft: 500ms, tpot: 50ms}}}}, or null for none"
        )
    else:
        _set(tier, steps, value, where)
