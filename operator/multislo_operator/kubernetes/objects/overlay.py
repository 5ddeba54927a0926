"""`spec.engine.podTemplate` laid over the pod template that the operator has made: a strategic merge in small, and what it may not touch.
Pure; called by `engine_pod`.

As in Kubernetes: maps are merged, null removes a key, lists are merged by the key that names their items where there is one and
replaced where there is none. Unlike there, a volume and a variable are replaced whole (each has one source, and two would be an error),
and tolerations are added to ours.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from multislo_operator.kubernetes import names

ENGINE = "engine"
"""The engine's container."""

KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "resourceClaims": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "schedulingGates": "name",
    "readinessGates": "conditionType",
}
"""What names an item of a list, by the list's field."""
WHOLE = {"volumes", "env"}
"""Lists whose items are replaced, not merged."""
APPENDED = {"tolerations"}
DIRECTIVE = "$patch"
"""`{name: X, $patch: delete}` removes an item."""


def overlaid(template: Mapping[str, Any], over: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The template with the overrides in it, and what is wrong with them (then the template is not for use)."""
    problems: list[str] = []
    merged = _merged(template, over, "", problems)
    if not problems:
        problems += _taken(template, merged)
    return without_nulls(merged), tuple(f"spec.engine.podTemplate.{problem}" for problem in problems)


def without_nulls(value: Any) -> Any:
    """The value without the keys that are null: what is to be removed where there was nothing to remove."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], path: str, problems: list[str]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        at = f"{path}.{key}" if path else key
        if key == DIRECTIVE:
            problems.append(
                f"{at}: {value!r} is not understood here; null removes a field, `$patch: delete` an item of a named list"
            )
        elif value is None:
            merged.pop(key, None)
        elif key in KEYS or key in APPENDED:
            merged[key] = _merged_list(key, base.get(key) or [], value, at, problems)
        elif isinstance(base.get(key), Mapping):
            if isinstance(value, Mapping):
                merged[key] = _merged(base[key], value, at, problems)
            else:
                problems.append(f"{at}: {value!r} must be a mapping")
        elif isinstance(value, Mapping):
            merged[key] = _merged({}, value, at, problems)
        elif isinstance(base.get(key), list) and not isinstance(value, list):
            problems.append(f"{at}: {value!r} must be a list")
        else:
            merged[key] = value
    return merged


def _merged_list(field: str, base: list[Any], over: Any, path: str, problems: list[str]) -> list[Any]:
    if not isinstance(over, list):
        problems.append(f"{path}: {over!r} must be a list")
        return base
    if field in APPENDED:
        return [*base, *(item for item in over if item not in base)]
    name = KEYS[field]
    merged = list(base)
    for index, item in enumerate(over):
        at = f"{path}[{index}]"
        if not isinstance(item, Mapping) or not isinstance(item.get(name), str | int):
            problems.append(f"{at}: {item!r} must be a mapping with {name}, by which it is told from the others")
            continue
        found = next((place for place, ours in enumerate(merged) if ours[name] == item[name]), None)
        body = {key: value for key, value in item.items() if key != DIRECTIVE}
        if DIRECTIVE in item:
            if item[DIRECTIVE] != "delete":
                problems.append(f"{at}.{DIRECTIVE}: {item[DIRECTIVE]!r} must be delete")
            elif found is not None:
                del merged[found]
        elif found is None:
            merged.append(_merged({}, body, at, problems))
        elif field in WHOLE:
            merged[found] = _merged({}, body, at, problems)
        else:
            merged[found] = _merged(merged[found], body, at, problems)
    return merged


def _taken(ours: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[str]:
    """What scaling and routing rest on, and the overrides have taken away."""
    for kind in ("labels", "annotations"):
        before, after = ours["metadata"].get(kind, {}), merged.get("metadata", {}).get(kind, {})
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key) and (key in before or _is_reserved(key)):
                yield f"metadata.{kind}.{key}: is the operator's and may not be changed"
    spec, had = merged.get("spec", {}), ours["spec"]
    for gates, name, ends in (("schedulingGates", "name", "starts"), ("readinessGates", "conditionType", "is ready")):
        for gate in had[gates]:
            if gate not in spec.get(gates, []):
                yield f"spec.{gates}: {gate[name]} must stay; by it the operator decides when an instance {ends}"
    if spec.get("restartPolicy", "Always") != "Always":
        yield f"spec.restartPolicy: {spec['restartPolicy']!r} must be Always: a Deployment has no other"
    engine, before = _engine_of(spec), _engine_of(had)
    if engine is None or before is None:
        yield f"spec.containers: the container {ENGINE!r} must stay"
        return
    if engine.get("args") != before["args"]:
        yield f"spec.containers[{ENGINE}].args: would replace the flags that a tier needs; more flags go into spec.engine.args"
    if not all(port in engine.get("ports", []) for port in before["ports"]):
        yield f"spec.containers[{ENGINE}].ports: {before['ports'][0]['containerPort']} must stay: the routers come in by it"


def _is_reserved(key: str) -> bool:
    return key.partition("/")[0] == names.GROUP or key in (names.TEMPLATE_HASH, names.DELETION_COST)


def _engine_of(spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((container for container in spec.get("containers", []) if container.get("name") == ENGINE), None)
