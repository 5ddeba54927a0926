"""The user's podTemplate laid over a pod template that the operator has made: a strategic merge in small, and what it may not touch. Pure;
called by `engine_pod` and `router_pod`.

As in Kubernetes: maps are merged, null removes a key, lists are merged by the key that names their items where there is one and
replaced where there is none. Unlike there, a volume and a variable are replaced whole (each has one source, and two would be an error),
and tolerations are added to ours.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from multislo_operator.kubernetes import names

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
"""`{name: X, $patch: delete}` removes an item or a field, `{$patch: replace, ...}` puts the rest in its place instead of merging. null
removes a field too, but `kubectl apply` drops nulls unless it is given --server-side."""


def overlaid(
    template: Mapping[str, Any], over: Mapping[str, Any], of: str = "engine"
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The template with the overrides in it, and what is wrong with them (then the template is not for use). `of`: engine or router,
    which is both the manifest's part and our container's name."""
    problems: list[str] = []
    merged = _merged(template, over, "", problems)
    if not problems:
        problems += _taken(template, merged, of)
    return without_nulls(merged), tuple(f"spec.{of}.podTemplate.{problem}" for problem in problems)


def without_nulls(value: Any) -> Any:
    """The value without the keys that are null: what is to be removed where there was nothing to remove."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], path: str, problems: list[str]) -> dict[str, Any]:
    directive = over.get(DIRECTIVE)
    if DIRECTIVE in over and directive not in ("delete", "replace"):
        problems.append(f"{path}.{DIRECTIVE}".removeprefix(".") + f": {directive!r} must be delete or replace")
    merged = {} if directive == "replace" else dict(base)
    for key, value in over.items():
        at = f"{path}.{key}" if path else key
        if key == DIRECTIVE:
            continue
        if value is None or (isinstance(value, Mapping) and value.get(DIRECTIVE) == "delete"):
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
        if item.get(DIRECTIVE) == "delete":
            if found is not None:
                del merged[found]
        elif found is None:
            merged.append(_merged({}, item, at, problems))
        else:
            merged[found] = _merged({} if field in WHOLE else merged[found], item, at, problems)
    return merged


def _taken(ours: Mapping[str, Any], merged: Mapping[str, Any], of: str) -> Iterator[str]:
    """What scaling and routing rest on, and the overrides have taken away."""
    for kind in ("labels", "annotations"):
        before, after = ours["metadata"].get(kind, {}), (merged.get("metadata") or {}).get(kind) or {}
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key) and (key in before or _is_reserved(key)):
                yield f"metadata.{kind}.{key}: is the operator's and may not be changed"
    spec, had = merged.get("spec") or {}, ours["spec"]
    for gates, name, ends in (("schedulingGates", "name", "starts"), ("readinessGates", "conditionType", "is ready")):
        for gate in had.get(gates, []):
            if gate not in spec.get(gates, []):
                yield f"spec.{gates}: {gate[name]} must stay; by it the operator decides when an instance {ends}"
    if spec.get("restartPolicy", "Always") != "Always":
        yield f"spec.restartPolicy: {spec['restartPolicy']!r} must be Always: a Deployment has no other"
    container, before = _container(spec, of), _container(had, of)
    if container is None or before is None:
        yield f"spec.containers: the container {of!r} must stay"
        return
    if container.get("args") != before["args"]:
        where = "more flags go into spec.engine.args" if of == "engine" else "what it is told stands in the manifest"
        yield f"spec.containers[{of}].args: are the operator's; {where}"
    if not all(port in container.get("ports", []) for port in before["ports"]):
        needed = " and ".join(str(port["containerPort"]) for port in before["ports"])
        yield f"spec.containers[{of}].ports: {needed} must stay: requests come in by it"


def _is_reserved(key: str) -> bool:
    return key.partition("/")[0] == names.GROUP or key in (names.TEMPLATE_HASH, names.DELETION_COST)


def _container(spec: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((container for container in spec.get("containers", []) if container.get("name") == name), None)
