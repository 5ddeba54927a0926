"""Which SLO a request asks for: its own numbers or tier in headers, else `service_tier` of the body, else the default tier.
Called by the gateway before the core hears of the request."""

import re
from dataclasses import dataclass

from multislo_router.shell.errors import Fault, Reason
from multislo_router.shell.request_head import RequestHead
from multislo_router.shell.settings import ShellSettings

_NUMBER = re.compile(rb"[0-9]{1,12}(?:\.[0-9]{1,12})?")


@dataclass(slots=True)
class RequestSlo:
    """None where the request says nothing: the core then takes the default."""

    tier: str | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None


DEFAULT = RequestSlo()
"""Never changed."""


def slo_of(head: RequestHead, service_tier: str | None, tiers: frozenset[str], settings: ShellSettings) -> RequestSlo:
    """Raises a `Fault` that names the header, its value and what is legal."""
    if head.tier is None and head.ttft is None and head.tpot is None and service_tier is None:
        return DEFAULT
    slo = RequestSlo()
    if head.ttft is not None:
        slo.ttft_s = _milliseconds(head.ttft, settings.ttft_min_ms, settings.ttft_max_ms) / 1000
    if head.tpot is not None:
        slo.tpot_s = _milliseconds(head.tpot, settings.tpot_min_ms, settings.tpot_max_ms) / 1000
    if head.tier is not None:
        slo.tier = head.tier.decode("utf-8", "replace").strip()
        if slo.tier not in tiers:
            legal = ", ".join(sorted(tiers))
            message = f"x-slo-tier: {slo.tier!r} is not a tier; legal are: {legal}"
            raise Fault(Reason.UNKNOWN_TIER, message, param="x-slo-tier")
    elif service_tier is not None:
        tier = settings.service_tiers.get(service_tier, service_tier if service_tier in tiers else None)
        if tier is None:
            legal = ", ".join(sorted(tiers | settings.service_tiers.keys()))
            message = f"service_tier: {service_tier!r} must be one of {legal}"
            raise Fault(Reason.UNKNOWN_TIER, message, param="service_tier")
        if slo.ttft_s is None and slo.tpot_s is None:
            slo.tier = tier
    return slo


def _milliseconds(header: tuple[bytes, bytes], least: float, most: float) -> float:
    name = header[0].decode("latin-1").lower()
    text = header[1].strip()
    value = float(text) if _NUMBER.fullmatch(text) else -1.0
    if not least <= value <= most:
        shown = text.decode("latin-1")
        message = f"{name}: {shown!r} must be a number of milliseconds from {least:.10g} to {most:.10g}"
        raise Fault(Reason.INVALID_SLO, message, param=name)
    return value
