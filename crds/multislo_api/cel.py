"""The rules of `multislo_api.rules` once more, in the language of an API server (CEL): the CRD carries them, so that `kubectl apply`
refuses what `multislo check` refuses. Keyed by the place that each rule is about; asked by `multislo_api.crd`.

`has()` stands wherever a field may be absent; every other field has a default, which the server fills in before it asks.
"""

from typing import Any

RESERVED_TIERS = ("router", "warm")
"""Tier names that would collide with what the operator itself makes: NAME-router and NAME-warm."""

_TIERS = 'self.tiers.map(t, t.name).join(", ")'
_MINIMA = "(self.tiers.map(t, t.instances.min).sum() + self.scaling.warmPool.min) * self.engine.accelerator.perInstance"
_STRANGERS = "self.scaling.schedule.filter(e, !self.tiers.exists(t, t.name == e.tier))"
_TOO_HIGH = "self.scaling.schedule.filter(e, self.tiers.exists(t, t.name == e.tier && e.min > t.instances.max))"


def _rule(
    rule: str, message: str, *, at: str = "", said: str = "", reason: str = "FieldValueInvalid"
) -> dict[str, Any]:
    """A rule; `said` is the message with the values in it (CEL), `message` what is shown where that fails; `at` the field to blame."""
    more = {"messageExpression": said} if said else {}
    return {"rule": rule, "message": message, **more, "reason": reason, **({"fieldPath": at} if at else {})}


_MIN_MAX = _rule(
    "self.min <= self.max",
    "min must be at most max",
    said='"min (" + string(self.min) + ") must be at most max (" + string(self.max) + ")"',
    at=".min",
)

RULES: dict[str, list[dict[str, Any]]] = {
    "spec": [
        _rule(
            "!has(self.defaultTier) || self.tiers.exists(t, t.name == self.defaultTier)",
            "must name a tier",
            said=f'"\\"" + self.defaultTier + "\\" must name a tier: one of " + {_TIERS}',
            at=".defaultTier",
        ),
        _rule(
            f"!has(self.scaling.schedule) || {_STRANGERS}.size() == 0",
            "each tier of the schedule must name a tier",
            said=f'"no such tier: " + {_STRANGERS}.map(e, e.tier).join(", ") + "; must be one of " + {_TIERS}',
            at=".scaling.schedule",
        ),
        _rule(
            f"!has(self.scaling.schedule) || {_TOO_HIGH}.size() == 0",
            "each min of the schedule must be at most its tier's instances.max",
            said=f'"min must be at most the tier\'s instances.max; it is more for: " + {_TOO_HIGH}'
            '.map(e, e.tier + " (" + string(e.min) + ")").join(", ")',
            at=".scaling.schedule",
        ),
        _rule(
            f"{_MINIMA} <= self.scaling.acceleratorsMax",
            "must be at least what the minima of the tiers and the warm pool need, times engine.accelerator.perInstance",
            said=f'string(self.scaling.acceleratorsMax) + " must be at least " + string({_MINIMA}) + ", what the minima need: (tiers " + '
            'self.tiers.map(t, string(t.instances.min)).join(" + ") + ", warm pool " + string(self.scaling.warmPool.min) + '
            '") instances of " + string(self.engine.accelerator.perInstance) + " each"',
            at=".scaling.acceleratorsMax",
        ),
    ],
    "spec.model.name": [
        _rule(
            "self == oldSelf",
            "cannot be changed once created",
            said='"cannot be changed once created (it is \\"" + oldSelf + "\\"); create another MultiSLOServing for another model"',
        )
    ],
    "spec.tiers": [
        _rule(
            "self.all(a, self.exists_one(b, duration(a.slo.tpot) == duration(b.slo.tpot)))",
            "a tier is its slo.tpot, so each must have its own",
            said='"a tier is its slo.tpot, so each must have its own: " + self.map(t, t.name + " has " + t.slo.tpot).join(", ")',
        )
    ],
    "spec.tiers[].name": [
        _rule(
            f"!(self in {list(RESERVED_TIERS)})",
            f"must not be one of the reserved names {', '.join(RESERVED_TIERS)}",
            said=f'"\\"" + self + "\\" is reserved; must be another name than {" and ".join(RESERVED_TIERS)}"',
        )
    ],
    "spec.tiers[].instances": [_MIN_MAX],
    "spec.scaling.warmPool": [_MIN_MAX],
    "spec.scaling.schedule[].timezone": [
        _rule(
            # Asking for an hour there fails in a zone that is none. Go also takes "Local", whatever that is.
            "self != 'Local' && timestamp('2026-01-01T00:00:00Z').getHours(self) >= 0",
            "must be a time zone of the IANA database such as Europe/Berlin",
        )
    ],
    "spec.router": [
        _rule(
            "self.port != self.adminPort",
            "adminPort must differ from port",
            said='"adminPort must differ from port (" + string(self.port) + ")"',
            at=".adminPort",
        )
    ],
    "spec.router.apiKeys": [
        _rule(
            "[has(self.secret), has(self.file), has(self.env)].exists_one(given, given)",
            "must be exactly one of {secret: NAME}, {file: PATH} and {env: NAME}",
        )
    ],
}


def rules_at(path: str) -> list[dict[str, Any]]:
    """The rules of a place such as `spec.tiers[].instances`."""
    return RULES.get(path, [])


def duration_rule(*, least: str, most: str, above: bool, bounds: str) -> dict[str, Any]:
    """The bounds of a duration, as `multislo_api.duration` has them."""
    compare = ">" if above else ">="
    return _rule(
        f"duration(self) {compare} duration('{least}') && duration(self) <= duration('{most}')",
        f"must be {bounds}",
        said=f'"\\"" + self + "\\" must be {bounds}"',
    )
