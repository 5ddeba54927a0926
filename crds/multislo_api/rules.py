"""Rules over two or more fields of a manifest. Called by `multislo_api.manifest` on the raw document beside the field checks; a rule
looks only at values that are legal by themselves, so each mistake is reported once.
"""

from collections.abc import Callable, Iterator
from typing import Any

from multislo_api.cel import MODELS_PATH, RESERVED_TIERS, ROUTED_PATHS, SERVICE_TIERS
from multislo_api.duration import parse_duration_s
from multislo_api.fields import located
from multislo_api.problems import Path, Problem, path_text, shown

POD_TEMPLATE = ("metadata", "spec")
"""What a podTemplate may hold."""


class Known:
    """The document's values that are legal by themselves."""

    def __init__(self, document: object, wrong: set[Path]) -> None:
        self._document = document
        self._wrong = wrong

    def get(self, *path: str | int) -> Any:
        """The value at a path, the default where it was left out, None where it is wrong or there is no default."""
        if any(path[: len(wrong)] == wrong for wrong in self._wrong):
            return None
        value: Any = self._document
        for part in path:
            if isinstance(value, dict) and part not in value:
                shape = located(path)[1]
                return shape.default if shape is not None else None
            value = value[part]
        return value

    def said(self, *path: str | int) -> str:
        """A path and its value, for a problem somewhere else: `spec.router.port (8000, the default)`."""
        value: Any = self._document
        for part in path:
            value = value[part] if not isinstance(value, dict) else value.get(part, {})
        return f"{path_text(path)} ({shown(self.get(*path))}{', the default' if value == {} else ''})"

    def count(self, *path: str | int) -> int:
        """How many items the list at a path has, wrong ones too; 0 where it is no legal list."""
        if path in self._wrong:
            return 0
        value = self._document
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return len(value) if isinstance(value, list) else 0


Rule = Callable[[Known], Iterator[Problem]]


def broken(document: object, wrong: set[Path]) -> list[Problem]:
    """The problems of all rules. `wrong` has the paths of the values that are not legal by themselves."""
    known = Known(document, wrong)
    return [problem for rule in RULES for problem in rule(known)]


def _tier_names_are_unique(known: Known) -> Iterator[Problem]:
    paths: list[Path] = [("spec", "tiers", index, "name") for index in range(known.count("spec", "tiers"))]
    yield from _unique(known, paths, lambda name: name, "a tier's name must be unique")


def _no_tier_has_a_reserved_name(known: Known) -> Iterator[Problem]:
    for index in range(known.count("spec", "tiers")):
        path: Path = ("spec", "tiers", index, "name")
        name = known.get(*path)
        if name in RESERVED_TIERS:
            yield Problem(path, f"{shown(name)} is reserved; must be another name than {' and '.join(RESERVED_TIERS)}")


def _served_names_are_unique(known: Known) -> Iterator[Problem]:
    paths: list[Path] = [
        ("spec", "model", "servedNames", index) for index in range(known.count("spec", "model", "servedNames"))
    ]
    yield from _unique(known, paths, lambda name: name, "a served name must be given once")


def _adapters_have_names_of_their_own(known: Known) -> Iterator[Problem]:
    adapters: list[Path] = [
        ("spec", "engine", "adapters", index, "name") for index in range(known.count("spec", "engine", "adapters"))
    ]
    served: list[Path] = [
        ("spec", "model", "servedNames", index) for index in range(known.count("spec", "model", "servedNames"))
    ]
    names = {known.get(*path): path for path in [*served, ("spec", "model", "name")]}
    for path in adapters:
        name = known.get(*path)
        if name is not None and name in names:
            yield Problem(
                path, f"{shown(name)} must differ from {known.said(*names[name])}: an adapter is a model of its own"
            )
    yield from _unique(known, adapters, lambda name: name, "an adapter's name must be unique")


def _no_two_tiers_have_one_tpot(known: Known) -> Iterator[Problem]:
    paths: list[Path] = [("spec", "tiers", index, "slo", "tpot") for index in range(known.count("spec", "tiers"))]
    yield from _unique(known, paths, parse_duration_s, "a tier is its tpot, so each must have its own")


def _minima_are_not_over_maxima(known: Known) -> Iterator[Problem]:
    pairs: list[Path] = [("spec", "tiers", index, "instances") for index in range(known.count("spec", "tiers"))]
    for path in [*pairs, ("spec", "scaling", "warmPool")]:
        least, most = known.get(*path, "min"), known.get(*path, "max")
        if least is not None and most is not None and least > most:
            yield Problem((*path, "min"), f"{least} must be at most {known.said(*path, 'max')}")


def _the_default_tier_exists(known: Known) -> Iterator[Problem]:
    yield from _names_a_tier(known, ("spec", "defaultTier"))


def _service_tiers_name_tiers(known: Known) -> Iterator[Problem]:
    for name in SERVICE_TIERS:
        yield from _names_a_tier(known, ("spec", "serviceTiers", name))


def _schedules_fit_their_tiers(known: Known) -> Iterator[Problem]:
    for index in range(known.count("spec", "scaling", "schedule")):
        entry: Path = ("spec", "scaling", "schedule", index)
        yield from _names_a_tier(known, (*entry, "tier"))
        name, least = known.get(*entry, "tier"), known.get(*entry, "min")
        for tier in range(known.count("spec", "tiers")):
            path: Path = ("spec", "tiers", tier, "instances", "max")
            most = known.get(*path)
            if (
                name is not None
                and name == known.get("spec", "tiers", tier, "name")
                and None not in (least, most)
                and least > most
            ):
                yield Problem((*entry, "min"), f"{least} must be at most {known.said(*path)}")


def _the_minima_fit_the_accelerators(known: Known) -> Iterator[Problem]:
    path = ("spec", "scaling", "acceleratorsMax")
    most, each = known.get(*path), known.get("spec", "engine", "accelerator", "perInstance")
    tiers = [known.get("spec", "tiers", index, "instances", "min") for index in range(known.count("spec", "tiers"))]
    warm = known.get("spec", "scaling", "warmPool", "min")
    # A minimum that is wrong counts as 0: what is surely too much is said in the first run.
    needed = (sum(least or 0 for least in tiers) + (warm or 0)) * (each or 1)
    if most is not None and needed > most:
        minima = " + ".join(str(least or 0) for least in tiers)
        yield Problem(
            path,
            f"{most} must be at least {needed}, what the minima need: (tiers {minima}, warm pool {warm or 0}) instances "
            f"of {each or 1} each",
        )


def _the_ports_differ(known: Known) -> Iterator[Problem]:
    port, admin = known.get("spec", "router", "port"), known.get("spec", "router", "adminPort")
    if port is not None and port == admin:
        yield Problem(
            ("spec", "router", "adminPort"), f"{admin} must differ from {known.said('spec', 'router', 'port')}"
        )


def _api_keys_come_from_one_place(known: Known) -> Iterator[Problem]:
    path = ("spec", "router", "apiKeys")
    keys = known.get(*path)
    if isinstance(keys, dict) and len(keys.keys() & {"secret", "file", "env"}) != 1:
        yield Problem(path, f"{shown(keys)} must be exactly one of {{secret: NAME}}, {{file: PATH}} and {{env: NAME}}")


def _a_path_of_the_router_is_not_passed_on(known: Known) -> Iterator[Problem]:
    paths: list[Path] = [
        ("spec", "router", "paths", index, "path") for index in range(known.count("spec", "router", "paths"))
    ]
    for path in paths:
        given = known.get(*path)
        if given is not None and (given in ROUTED_PATHS or given.startswith(f"{MODELS_PATH}/")):
            yield Problem(
                path,
                f"{shown(given)} is answered by the router itself; must be another path than {', '.join(ROUTED_PATHS)}",
            )
    yield from _unique(known, paths, lambda given: given, "a path must be given once, with all of its methods")


def _a_pod_template_is_one(known: Known) -> Iterator[Problem]:
    for part in ("engine", "router"):
        path = ("spec", part, "podTemplate")
        for key, value in (known.get(*path) or {}).items():
            if key not in POD_TEMPLATE:
                told = f"unknown field (with {shown(value)}); must be one of {', '.join(POD_TEMPLATE)}"
                yield Problem((*path, key), f"{told}; did you mean {shown(path_text(('spec', key)))}?")
            elif not isinstance(value, dict):
                yield Problem((*path, key), f"{shown(value)} must be a mapping")


RULES: list[Rule] = [
    _tier_names_are_unique,
    _no_tier_has_a_reserved_name,
    _no_two_tiers_have_one_tpot,
    _served_names_are_unique,
    _adapters_have_names_of_their_own,
    _minima_are_not_over_maxima,
    _the_default_tier_exists,
    _service_tiers_name_tiers,
    _schedules_fit_their_tiers,
    _the_minima_fit_the_accelerators,
    _the_ports_differ,
    _api_keys_come_from_one_place,
    _a_path_of_the_router_is_not_passed_on,
    _a_pod_template_is_one,
]


def _unique(known: Known, paths: list[Path], key: Callable[[Any], object], why: str) -> Iterator[Problem]:
    first: dict[object, Path] = {}
    for path in paths:
        value = known.get(*path)
        if value is None:
            continue
        before = first.setdefault(key(value), path)
        if before != path:
            yield Problem(path, f"{shown(value)} must differ from {known.said(*before)}: {why}")


def _names_a_tier(known: Known, path: Path) -> Iterator[Problem]:
    name = known.get(*path)
    names = [known.get("spec", "tiers", index, "name") for index in range(known.count("spec", "tiers"))]
    # With one name unknown, this might be it.
    if name is not None and names and None not in names and name not in names:
        yield Problem(path, f"{shown(name)} must name a tier: one of {', '.join(names)}")
