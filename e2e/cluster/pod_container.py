"""How a container of a manifest becomes a process of this machine: its command line, environment and files. Used by pod_processes.py.

There is no image, no file system and no network of its own. So: the image's program is the `multislo` of this Python environment;
files of volumes are written to a folder, and paths below a mountPath are replaced by the folder's in arguments and environment; the
address 0.0.0.0 becomes the pod's own, one of the loopback's. Where a container would find its service account's token, KUBECONFIG says
where it is instead. Limits on CPU and memory are ignored.
"""

import base64
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.api import Api, Object, Refused

ANY_ADDRESS = "0.0.0.0"
ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_LIFE_S = 86_400


class CannotStart(Exception):
    """What a kubelet calls CreateContainerConfigError: something that the container refers to is not there (yet)."""


@dataclass(frozen=True, slots=True)
class Start:
    command: list[str]
    environment: dict[str, str]


async def start_of(api: Api, pod: Object, container: Object, ip: str, directory: Path) -> Start:
    """Reads what the container refers to and writes its files below `directory`. Raises CannotStart."""
    mounts = await _mounts(api, pod, container, directory)
    variables = await _environment(api, pod, container, ip)
    words = [*(container.get("command") or ["multislo"]), *(container.get("args") or [])]
    here = [_here(_expanded(word, variables), mounts, ip) for word in words]
    environment = {name: _here(value, mounts, ip) for name, value in variables.items()}
    if ACCOUNT_FOLDER in mounts:
        environment["KUBECONFIG"] = str(await _account(api, pod, mounts[ACCOUNT_FOLDER]))
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return Start([_program(here[0]), *here[1:]], {**inherited, "HOSTNAME": pod["metadata"]["name"], **environment})


def port_of(container: Object, port: int | str) -> int:
    """A probe's port, which may be the name of one of the container's."""
    if isinstance(port, int):
        return port
    for known in container.get("ports", []):
        if known.get("name") == port:
            return int(known["containerPort"])
    raise CannotStart(f'container {container["name"]}: no port is called "{port}"')


def _program(word: str) -> str:
    if Path(word).name in ("multislo", "python", "python3"):
        beside = Path(sys.executable).with_name(Path(word).name)
        return str(beside) if beside.exists() else word
    found = shutil.which(word)
    if found is None:
        raise CannotStart(f"program {word} is not on this machine")
    return found


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    """$(NAME) by its value; $$(NAME) is the way to write $(NAME); unknown names stay."""

    def value(match: re.Match[str]) -> str:
        whole, name = match.group(0), match.group(1)
        return whole[1:] if whole.startswith("$$") else variables.get(name, whole)

    return re.sub(r"\$?\$\(([-._A-Za-z][-._A-Za-z0-9]*)\)", value, word)


def _here(word: str, mounts: Mapping[str, Path], ip: str) -> str:
    if mounts:  # In one pass: the folder of one may lie below the mountPath of another, as of /tmp.
        paths = "|".join(re.escape(path) for path in sorted(mounts, key=len, reverse=True))
        word = re.sub(rf"(?<![\w./-])({paths})(?=/|$|[^\w.-])", lambda match: str(mounts[match.group(1)]), word)
    return word.replace(ANY_ADDRESS, ip)


# -- environment -----------------------------------------------------------------------------------------------------------


async def _environment(api: Api, pod: Object, container: Object, ip: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        for kind in ("configMap", "secret"):
            if f"{kind}Ref" in source:
                values = await _values(
                    api, pod, kind, source[f"{kind}Ref"]["name"], source[f"{kind}Ref"].get("optional", False)
                )
                found |= {source.get("prefix", "") + key: value.decode() for key, value in values.items()}
    for entry in container.get("env", []):
        source = entry.get("valueFrom")
        if source is None:
            found[entry["name"]] = _expanded(entry.get("value", ""), found)
        elif (value := await _value(api, pod, source, ip)) is not None:
            found[entry["name"]] = value
    return found


async def _value(api: Api, pod: Object, source: Object, ip: str) -> str | None:
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"], ip)
    for kind in ("configMap", "secret"):
        if f"{kind}KeyRef" in source:
            wanted = source[f"{kind}KeyRef"]
            values = await _values(api, pod, kind, wanted["name"], wanted.get("optional", False))
            if wanted["key"] in values:
                return values[wanted["key"]].decode()
            if wanted.get("optional"):
                return None
            raise CannotStart(f"{kind} {wanted['name']} has no key {wanted['key']}")
    return "0"  # resourceFieldRef: there are no limits here.


def _field(pod: Object, path: str, ip: str) -> str:
    keyed = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if keyed:
        return str((pod["metadata"].get(keyed.group(1)) or {}).get(keyed.group(2), ""))
    own: dict[str, str] = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "spec.nodeName": pod["spec"]["nodeName"],
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", "default"),
        "status.podIP": ip,
        "status.podIPs": ip,
        "status.hostIP": "127.0.0.1",
        "status.hostIPs": "127.0.0.1",
    }
    if path not in own:
        raise CannotStart(f"fieldPath {path} is not known here")
    return own[path]


async def _values(api: Api, pod: Object, kind: str, name: str, optional: bool) -> dict[str, bytes]:
    plural = "configmaps" if kind == "configMap" else "secrets"
    try:
        found = await api.get(f"/api/v1/namespaces/{pod['metadata']['namespace']}/{plural}/{name}")
    except Refused as no:
        if no.status == 404 and optional:
            return {}
        raise CannotStart(f'{kind} "{name}" not found' if no.status == 404 else str(no)) from None
    encoded = (found.get("data") or {}) if kind == "secret" else (found.get("binaryData") or {})
    values = {key: base64.b64decode(value) for key, value in encoded.items()}
    if kind == "configMap":
        values |= {key: text.encode() for key, text in (found.get("data") or {}).items()}
    return values


async def _account(api: Api, pod: Object, place: Path) -> Path:
    """A kubeconfig of the pod's service account, bound to the pod as a kubelet's tokens are."""
    space, account = pod["metadata"]["namespace"], pod["spec"].get("serviceAccountName", "default")
    bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    try:
        token = await api.create(
            f"/api/v1/namespaces/{space}/serviceaccounts/{account}/token",
            {"spec": {"expirationSeconds": TOKEN_LIFE_S, "boundObjectRef": bound}},
        )
    except Refused as no:
        raise CannotStart(str(no)) from None
    return token_kubeconfig(place / "kubeconfig", api.url, place / "ca.crt", token["status"]["token"], space)


def token_kubeconfig(path: Path, url: str, authority: Path, token: str, namespace: str) -> Path:
    """Writes a kubeconfig for a token."""
    path.touch(mode=0o600)
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "e2e", "cluster": {"server": url, "certificate-authority": str(authority)}}],
                "users": [{"name": "account", "user": {"token": token}}],
                "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "account", "namespace": namespace}}],
                "current-context": "e2e",
            }
        )
    )
    return path


# -- files -----------------------------------------------------------------------------------------------------------------


async def _mounts(api: Api, pod: Object, container: Object, directory: Path) -> dict[str, Path]:
    """mountPath -> folder or file on this machine."""
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
    found: dict[str, Path] = {}
    for mount in container.get("volumeMounts", []):
        volume = volumes[mount["name"]]
        if "hostPath" in volume:
            place = Path(volume["hostPath"]["path"])
        else:
            place = directory / "volumes" / volume["name"]
            place.mkdir(parents=True, exist_ok=True)
            await _fill(api, pod, volume, place)
        found[mount["mountPath"].rstrip("/")] = place / mount["subPath"] if "subPath" in mount else place
    return found


async def _fill(api: Api, pod: Object, volume: Object, place: Path) -> None:
    for source in volume.get("projected", {}).get("sources", [volume]):
        for kind in ("configMap", "secret"):
            if kind not in source:
                continue
            wanted = source[kind]
            name = wanted.get("name") or wanted["secretName"]
            values = await _values(api, pod, kind, name, wanted.get("optional", False))
            paths = {item["key"]: item["path"] for item in wanted.get("items", [])} or {key: key for key in values}
            for key, path in paths.items():
                if key not in values:
                    raise CannotStart(f"{kind} {name} has no key {key}")
                file = place / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch(mode=0o600)
                file.write_bytes(values[key])
