"""What the API server was last seen to hold, by resource. `watch` fills it, `apply` adds the answers to its own writes, `reconciler` reads
it; a change wakes the resource that it belongs to.

An object never goes back: one with an older resourceVersion than the known one (a watch that lags behind our own write) is left aside.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.client import Kind
from multislo_operator.kubernetes.names import GROUP, INSTANCE, KIND, PLURAL, VERSION, Key, deployment_of
from multislo_operator.kubernetes.seen import Seen
from multislo_operator.kubernetes.slim import slim

RESOURCE = Kind(f"{GROUP}/{VERSION}", KIND)
DEPLOYMENT = Kind("apps/v1", "Deployment")
REPLICA_SET = Kind("apps/v1", "ReplicaSet")
POD = Kind("v1", "Pod")
CONFIG_MAP = Kind("v1", "ConfigMap")
assert RESOURCE.plural == PLURAL

Named = dict[str, Object]
PROFILE_KEY = "profile.yaml"
"""Of a ConfigMap: where the profile is in it."""


@dataclass(slots=True)
class Cache:
    """`wake` is told which resource has changed."""

    wake: Callable[[Key], None] = lambda key: None
    resources: dict[Key, Object] = field(default_factory=dict)
    children: dict[Key, dict[Kind, Named]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(dict)))
    """By the resource's key, their kind and name. Of kinds that `seen` does not show, only the metadata."""
    watched: set[tuple[Kind, str | None]] = field(default_factory=set)
    """Kinds that have been listed, in a namespace or everywhere (None): what is not here does not exist."""
    homes: dict[str, Key] = field(default_factory=dict)
    """Of which resource each child is, by its uid: somebody may take its label away, or give it another."""
    profiles: dict[tuple[str, str], str | None] = field(default_factory=dict)
    """(namespace, ConfigMap) -> the text in it, of those that a resource names."""

    def seen(self, key: Key) -> Seen | None:
        """None: there is no such resource."""
        resource = self.resources.get(key)
        if resource is None:
            return None
        children: dict[Kind, Named] = self.children.get(key) or {}
        named = profile_of(resource)
        return Seen(
            resource=resource,
            # A copy under another name has all our labels, and is nobody's business here.
            deployments={
                name: found
                for name, found in (children.get(DEPLOYMENT) or {}).items()
                if name == deployment_of(key.name, found["metadata"]["labels"])
            },
            replica_sets=dict(children.get(REPLICA_SET) or {}),
            pods=dict(children.get(POD) or {}),
            profile_text=None if named is None else self.profiles.get((key.namespace, named)),
        )

    def watches(self, key: Key, kind: Kind) -> bool:
        return (kind, None) in self.watched or (kind, key.namespace) in self.watched

    def child(self, key: Key, kind: Kind, name: str) -> Object | None:
        return (self.children.get(key) or {}).get(kind, {}).get(name)

    def put(self, kind: Kind, object: Object) -> Object:
        """A new or changed object; as it is kept."""
        object = slim(kind, object)
        named, key, name = self._place(kind, object)
        if kind != RESOURCE:
            self._move(kind, object, key)
        if named is None or key is None:
            return object
        known = named.get(name)
        if known is None or not _older(object, known):
            named[name] = object = _dated(object, known) if kind == DEPLOYMENT else object
            self.wake(key)
        return object

    def drop(self, kind: Kind, object: Object) -> None:
        """A deleted object. One of the same name that came after it stays."""
        named, key, name = self._place(kind, object)
        if named is None or key is None:
            return
        known = named.get(name)
        if known is not None and known["metadata"]["uid"] == object["metadata"]["uid"]:
            del named[name]
            self.homes.pop(object["metadata"]["uid"], None)
            self._forget_empty(key)
            self.wake(key)

    def replace(self, kind: Kind, namespace: str | None, objects: Iterable[Object]) -> None:
        """A whole new list of a kind, in a namespace or everywhere (None): what is not in it has vanished."""
        listed = list(objects)
        there = {object["metadata"]["uid"] for object in listed}
        for object in [o for o in self._all(kind) if namespace in (None, o["metadata"]["namespace"])]:
            if object["metadata"]["uid"] not in there:
                self.drop(kind, object)
        for object in listed:
            self.put(kind, object)

    def prune(self, kind: Kind, namespace: str | None, there: Collection[str], version: str) -> None:
        """A list of that version, in a namespace or everywhere (None), held these uids: the others have vanished, but what is newer."""
        for object in [o for o in self._all(kind) if namespace in (None, o["metadata"]["namespace"])]:
            metadata = object["metadata"]
            if metadata["uid"] not in there and not newer(metadata["resourceVersion"], version):
                self.drop(kind, object)

    def versions(self, kind: Kind) -> dict[str, str]:
        """uid -> resourceVersion of all of a kind."""
        return {o["metadata"]["uid"]: o["metadata"]["resourceVersion"] for o in self._all(kind)}

    def set_profile(self, namespace: str, name: str, text: str | None) -> None:
        if self.profiles.get((namespace, name)) == text and (namespace, name) in self.profiles:
            return
        self.profiles[namespace, name] = text
        for key in self.naming(namespace, name):
            self.wake(key)

    def naming(self, namespace: str, config_map: str) -> list[Key]:
        """The resources whose profile this ConfigMap is."""
        return [
            key
            for key, resource in self.resources.items()
            if key.namespace == namespace and profile_of(resource) == config_map
        ]

    def _place(self, kind: Kind, object: Object) -> tuple[dict[Any, Object] | None, Key | None, Any]:
        metadata = object["metadata"]
        if kind == RESOURCE:
            key = Key(metadata["namespace"], metadata["name"])
            return self.resources, key, key
        owner = (metadata.get("labels") or {}).get(INSTANCE)
        if owner is None:
            return None, None, None
        key = Key(metadata["namespace"], owner)
        return self.children[key][kind], key, metadata["name"]

    def _move(self, kind: Kind, object: Object, key: Key | None) -> None:
        """Out of the resource that it belonged to, where that is another now."""
        metadata = object["metadata"]
        before = self.homes.get(metadata["uid"])
        if before is not None and before != key:
            known = self.child(before, kind, metadata["name"])
            if known is not None and known["metadata"]["uid"] == metadata["uid"] and not _older(object, known):
                del self.children[before][kind][metadata["name"]]
                self._forget_empty(before)
                self.wake(before)
        if key is not None:
            self.homes[metadata["uid"]] = key
        else:
            self.homes.pop(metadata["uid"], None)

    def _all(self, kind: Kind) -> list[Object]:
        if kind == RESOURCE:
            return list(self.resources.values())
        return [object for children in self.children.values() for object in children.get(kind, {}).values()]

    def _forget_empty(self, key: Key) -> None:
        if key not in self.resources and not any(self.children.get(key, {}).values()):
            self.children.pop(key, None)


def profile_of(resource: Object) -> str | None:
    """The ConfigMap that holds its profile; None: it names none, or is not understood."""
    spec = resource.get("spec")
    profile = spec.get("profile") if isinstance(spec, dict) else None
    name = profile.get("configMap") if isinstance(profile, dict) else None
    return name if isinstance(name, str) else None


def profile_text(config_map: Object) -> str | None:
    text = (config_map.get("data") or {}).get(PROFILE_KEY)
    return text if isinstance(text, str) else None


def _dated(deployment: Object, known: Object | None) -> Object:
    """With a time in each managed field. The API server notes none for what came through the scale subresource (`kubectl scale`, an HPA),
    so it gets the time at which it was first seen with this count."""
    entries = deployment["metadata"].get("managedFields") or []
    if all("time" in entry for entry in entries):
        return deployment
    metadata = (known or {}).get("metadata") or {}
    same = known is not None and known["spec"].get("replicas") == deployment["spec"].get("replicas")
    before = {_writer(entry): entry["time"] for entry in metadata.get("managedFields") or ()} if same else {}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    dated = [{**entry, "time": entry.get("time") or before.get(_writer(entry)) or now} for entry in entries]
    return {**deployment, "metadata": {**deployment["metadata"], "managedFields": dated}}


def _writer(entry: Object) -> tuple[object, ...]:
    return entry.get("manager"), entry.get("operation"), entry.get("subresource")


def _older(object: Object, known: Object) -> bool:
    """Versions are numbers that grow, of one kind (guaranteed since Kubernetes 1.35, and so in practice before)."""
    if object["metadata"]["uid"] != known["metadata"]["uid"]:
        return str(object["metadata"].get("creationTimestamp")) < str(known["metadata"].get("creationTimestamp"))
    return newer(known["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"])


def newer(version: str, other: str) -> bool:
    return version.isdigit() and other.isdigit() and int(version) > int(other)
