"""The rules of `multislo_api.rules` in the API server's language (CEL): the CRD carries them, so that `kubectl apply` refuses what
`multislo check` refuses. Keyed by the place of each rule; used by `multislo_api.crd`.

`has()` stands wherever a field may be absent; every other field has a default, which the server fills in before it asks.
"""

from typing import Any

RESERVED_TIERS = ("router", "warm")
"""Tier names that would collide with what the operator itself makes: NAME-router and NAME-warm."""

SERVICE_TIERS = ("auto", "default", "flex", "priority")
"""OpenAI's values of `service_tier`."""

MODELS_PATH = "/v1/models"
ROUTED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", MODELS_PATH, "/health")
"""What the router schedules or answers itself."""

DURATION = "^([0-9]{1,5}([.][0-9]{1,3})?(h|m|s|ms)){1,4}$"
"""A subset of Go's `time.ParseDuration` without a sign and without units that no SLO needs, so that `multislo_api.duration` and an API
server's `duration()` agree on every text that it lets through."""

_TIERS = "self.tiers.map(t, t.name)"
_MINIMA = "(self.tiers.map(t, t.instances.min).sum() + self.scaling.warmPool.min) * self.engine.accelerator.perInstance"
_STRANGERS = "self.scaling.schedule.filter(e, !self.tiers.exists(t, t.name == e.tier))"
_ALIASES = "self.engine.adapters.filter(a, a.name == self.model.name || (has(self.model.servedNames) && a.name in self.model.servedNames))"
_TOO_HIGH = "self.scaling.schedule.filter(e, self.tiers.exists(t, t.name == e.tier && e.min > t.instances.max))"


def _cron_field(number: str, names: str = "", others: str = "") -> str:
    value = f"(0*({number}){f'|{names}' if names else ''})"
    item = f"({others}([*]|{value}(-{value})?)(/0*[1-9][0-9]*)?)"
    return f"{item}(,{item})*"


_DAYS, _MONTHS = "SUN|MON|TUE|WED|THU|FRI|SAT", "JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC"
_CRON_FIELDS = [
    _cron_field("[0-5]?[0-9]"),
    _cron_field("1?[0-9]|2[0-3]"),
    _cron_field("[1-9]|[12][0-9]|3[01]", others="LW?(/0*[1-9][0-9]*)?|"),
    _cron_field("[1-9]|1[0-2]", _MONTHS),
    _cron_field("[0-7]", _DAYS, others=f"(0*[0-7]|{_DAYS})#0*[1-5]|0*[0-7]L|"),
]
CRON = rf"(?i)^\s*{'[[:space:]]+'.join(_CRON_FIELDS)}\s*$".replace(r"\s", "[[:space:]]")
"""All that the cron reader of `multislo_api.kind` takes and little else ("5-1", "30 February"); RE2's syntax."""


def _rule(
    rule: str, message: str, *values: str, at: str = "", fallback: str = "", reason: str = "FieldValueInvalid"
) -> dict[str, Any]:
    """A rule. `message` may have `%s` and `%d` for `values` (CEL); `format` must stand outermost, because the server cannot bound what it
    gives and so refuses anything done with it. `fallback` is said where that fails; `at` is the field to blame."""
    if not values:
        said = {"message": message}
    else:
        said = {"message": fallback, "messageExpression": f"{_quoted(message)}.format([{', '.join(values)}])"}
    return {"rule": rule, **said, "reason": reason, **({"fieldPath": at} if at else {})}


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


_MIN_MAX = _rule(
    "self.min <= self.max",
    "%d must be at most max (%d)",
    *("self.min", "self.max"),
    fallback="must be at most max",
    at=".min",
)

_SERVICE_TIERS = [
    _rule(
        f"!has(self.serviceTiers) || !has(self.serviceTiers.{name}) || self.tiers.exists(t, t.name == self.serviceTiers.{name})",
        '"%s" must name a tier: one of %s',
        *(f"self.serviceTiers.{name}", _TIERS),
        fallback="must name a tier",
        at=f".serviceTiers.{name}",
    )
    for name in SERVICE_TIERS
]

RULES: dict[str, list[dict[str, Any]]] = {
    "spec": [
        *_SERVICE_TIERS,
        _rule(
            f"!has(self.engine.adapters) || {_ALIASES}.size() == 0",
            "%s must differ from the model's own name and its servedNames: an adapter is a model of its own",
            f"{_ALIASES}.map(a, a.name)",
            fallback="an adapter's name must differ from the model's own name and its servedNames",
            at=".engine.adapters",
        ),
        _rule(
            "!has(self.defaultTier) || self.tiers.exists(t, t.name == self.defaultTier)",
            '"%s" must name a tier: one of %s',
            *("self.defaultTier", _TIERS),
            fallback="must name a tier",
            at=".defaultTier",
        ),
        _rule(
            f"!has(self.scaling.schedule) || {_STRANGERS}.size() == 0",
            "%s must name a tier: one of %s",
            *(f"{_STRANGERS}.map(e, e.tier)", _TIERS),
            fallback="each tier of the schedule must name a tier",
            at=".scaling.schedule",
        ),
        _rule(
            f"!has(self.scaling.schedule) || {_TOO_HIGH}.size() == 0",
            "min %s of %s must be at most instances.max of that tier",
            *(f"{_TOO_HIGH}.map(e, e.min)", f"{_TOO_HIGH}.map(e, e.tier)"),
            fallback="each min must be at most instances.max of that tier",
            at=".scaling.schedule",
        ),
        _rule(
            f"{_MINIMA} <= self.scaling.acceleratorsMax",
            "%d must be at least %d, what the minima need: (tiers %s, warm pool %d) instances of %d each",
            *("self.scaling.acceleratorsMax", _MINIMA, "self.tiers.map(t, t.instances.min)"),
            *("self.scaling.warmPool.min", "self.engine.accelerator.perInstance"),
            fallback="must be at least what the minima of the tiers and the warm pool need",
            at=".scaling.acceleratorsMax",
        ),
    ],
    "spec.model.name": [
        _rule(
            "self == oldSelf",
            'cannot be changed once created: it is "%s"; make another MultiSLOServing for another model',
            "oldSelf",
            fallback="cannot be changed once created",
        )
    ],
    "spec.tiers": [
        _rule(
            # Only of legal durations: what is none is told where it stands.
            f"!self.all(t, t.slo.tpot.matches('{DURATION}')) || "
            "self.all(a, self.exists_one(b, duration(a.slo.tpot) == duration(b.slo.tpot)))",
            "a tier is its slo.tpot, so each must have its own: tiers %s have %s",
            *("self.map(t, t.name)", "self.map(t, t.slo.tpot)"),
            fallback="a tier is its slo.tpot, so each must have its own",
        )
    ],
    "spec.tiers[].name": [
        _rule(
            f"!(self in {list(RESERVED_TIERS)})",
            f'"%s" is reserved; must be another name than {" and ".join(RESERVED_TIERS)}',
            "self",
            fallback=f"must be another name than {' and '.join(RESERVED_TIERS)}",
        )
    ],
    "spec.tiers[].instances": [_MIN_MAX],
    "spec.scaling.warmPool": [_MIN_MAX],
    "spec.scaling.schedule[].cron": [
        _rule(
            f"self.matches('{CRON}')",
            '"%s" must be a cron expression of five fields: minute, hour, day of month, month, day of week',
            "self",
            fallback="must be a cron expression of five fields",
        )
    ],
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
            "%d must differ from port (%d)",
            *("self.adminPort", "self.port"),
            fallback="must differ from port",
            at=".adminPort",
        ),
    ],
    "spec.router.apiKeys": [
        _rule(
            "[has(self.secret), has(self.file), has(self.env)].exists_one(given, given)",
            "must be exactly one of {secret: NAME}, {file: PATH} and {env: NAME}",
        )
    ],
    "spec.router.paths[].path": [
        _rule(
            f"!(self in {list(ROUTED_PATHS)} || self.startsWith('{MODELS_PATH}/'))",
            f'"%s" is answered by the router itself; must be another path than {", ".join(ROUTED_PATHS)}',
            "self",
            fallback=f"must be another path than {', '.join(ROUTED_PATHS)}",
        )
    ],
}


def rules_at(path: str) -> list[dict[str, Any]]:
    """The rules of a place such as `spec.tiers[].instances`."""
    return RULES.get(path, [])


def pattern_rule(pattern: str, legal: str) -> dict[str, Any]:
    """A pattern with a message in words; with `pattern` alone, the server shows only the pattern."""
    return _rule(f"self.matches({_quoted(pattern)})", f'"%s" must be {legal}', "self", fallback=f"must be {legal}")


def duration_rules(*, least: str, most: str, above: bool, legal: str, within: str) -> list[dict[str, Any]]:
    """What a duration is and its bounds, as `multislo_api.duration` has them. The second holds its tongue where the first has spoken."""
    matches = f"self.matches({_quoted(DURATION)})"
    bounds = f"duration(self) {'>' if above else '>='} duration('{least}') && duration(self) <= duration('{most}')"
    return [
        _rule(matches, f'"%s" must be {legal}', "self", fallback=f"must be {legal}"),
        _rule(f"!{matches} || ({bounds})", f'"%s" must be {within}', "self", fallback=f"must be {within}"),
    ]
