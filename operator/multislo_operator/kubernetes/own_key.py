"""The operator's own key, in a Secret that it makes where there is none. A chart that made it would make another one each time that it is
rendered without a cluster. Called once, by `run`, at the start."""

import base64
import binascii
import logging
import secrets
from collections.abc import Sequence

from multislo_operator.kubernetes.client import AlreadyExists, Api, Kind, NotFound
from multislo_operator.kubernetes.names import APP, FIELD_MANAGER, MANAGED_BY, NAME
from multislo_operator.kubernetes.wire import Json

LOG = logging.getLogger(__name__)
SECRET = Kind("v1", "Secret")
FIELD = "key"
KEY_BYTES, KEY_BYTES_MIN = 32, 16


class KeyUnusable(Exception):
    """What is in the Secret is no key, in words."""


async def own_key(api: Api, namespace: str, name: str, owners: Sequence[Json]) -> bytes:
    """Of two replicas that start at once, one makes it and both read it. Raises ApiError, KeyUnusable."""
    try:
        return _key(await api.get(SECRET, namespace, name))
    except NotFound:
        pass
    labels = {NAME: APP, MANAGED_BY: FIELD_MANAGER}
    metadata = {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": list(owners)}
    data = {FIELD: base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}
    head = {"apiVersion": SECRET.api_version, "kind": SECRET.name, "metadata": metadata}
    try:
        made = await api.create({**head, "type": "Opaque", "immutable": True, "data": data})
    except AlreadyExists:
        made = await api.get(SECRET, namespace, name)
    else:
        LOG.info("made the key of this installation: Secret %s/%s", namespace, name)
    return _key(made)


def _key(secret: Json) -> bytes:
    place = f"Secret {secret['metadata']['namespace']}/{secret['metadata']['name']}"
    text = (secret.get("data") or {}).get(FIELD)
    if not isinstance(text, str):
        raise KeyUnusable(f'{place} has no "{FIELD}"; it must hold {KEY_BYTES_MIN} random bytes or more')
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise KeyUnusable(f"{place}: {FIELD}: {error}") from None
    if len(key) < KEY_BYTES_MIN:
        raise KeyUnusable(f"{place}: {FIELD} has {len(key)} bytes; must be at least {KEY_BYTES_MIN}")
    return key
