"""A manifest, and what is made for it in a cluster."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from multislo_api.manifest import manifest_from
from multislo_operator.kubernetes.objects.children import Context, children
from multislo_perf.profile import ProfileDocument, load_document

DOCUMENT: dict[str, Any] = {
    "apiVersion": "multislo.dev/v1alpha1",
    "kind": "MultiSLOServing",
    "metadata": {"name": "llama", "namespace": "serving"},
    "spec": {
        "model": {"name": "meta-llama/Llama-3.1-8B-Instruct", "servedNames": ["llama-3.1-8b"], "maxLength": 16384},
        "profile": "llama-3.1-8b-h200-tp1",
        "engine": {"type": "VLLM"},
        "tiers": [
            {"name": "realtime", "slo": {"ttft": "300ms", "tpot": "20ms"}, "instances": {"min": 1, "max": 8}},
            {"name": "batch", "slo": {"ttft": "1s", "tpot": "100ms"}, "instances": {"min": 0, "max": 12}},
        ],
        "scaling": {"acceleratorsMax": 20},
    },
}
PROFILE: ProfileDocument = load_document("llama-3.1-8b-h200-tp1")


class Cluster:
    """What the operator would apply for the document, which a story changes."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = json.loads(json.dumps(DOCUMENT))
        self.context: dict[str, Any] = {
            "uid": "0b5e0e6e-1111-2222-3333-444455556666",
            "image": "multislo:test",
            "token_secret": "llama-fleet-01234567",
            "monitors": True,
            "profile_text": PROFILE.text(),
            "operator_namespace": "multislo-system",
            "version": "0.2.0",
        }

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.document["spec"]
        return spec

    def made(self) -> dict[tuple[str, str], dict[str, Any]]:
        """By kind and name; JSON values, as they go over the wire."""
        found = children(manifest_from(self.document), PROFILE.profile(), Context(**self.context))
        objects = json.loads(json.dumps(found))
        assert len({(o["kind"], o["metadata"]["name"]) for o in objects}) == len(objects)
        return {(o["kind"], o["metadata"]["name"]): o for o in objects}

    def pod(self, deployment: str) -> dict[str, Any]:
        spec: dict[str, Any] = self.made()["Deployment", deployment]["spec"]["template"]["spec"]
        return spec

    def templates(self, change: Callable[["Cluster"], object] | None = None) -> dict[str, Any]:
        """The pod templates by their Deployments, after a change."""
        if change is not None:
            change(self)
        return {name: o["spec"]["template"] for (kind, name), o in self.made().items() if kind == "Deployment"}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def emulated(cluster: Cluster) -> Cluster:
    cluster.spec["engine"] = {"type": "Emulated"}
    return cluster
