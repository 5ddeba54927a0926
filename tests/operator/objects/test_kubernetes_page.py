"""docs/kubernetes.md says what is so."""

import re
from pathlib import Path
from typing import Any

import yaml

PAGE = (Path(__file__).parents[3] / "docs" / "kubernetes.md").read_text(encoding="utf-8")


def test_its_example_can_be_made(cluster: Any) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    for part, fields in yaml.safe_load(example)["spec"].items():
        cluster.spec[part] = {**cluster.spec.get(part, {}), **fields}
    pod, router = cluster.pod("llama-realtime"), cluster.pod("llama-router")
    assert pod["containers"][0]["resources"]["requests"] == {"cpu": "8", "memory": "64Gi"}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert router["imagePullSecrets"] == [{"name": "registry"}]


def test_openshifts_line_leaves_the_user_to_the_namespace(cluster: Any) -> None:
    (line,) = re.findall(r"`(securityContext: \{\$patch: replace, run.*?\}\})`", " ".join(PAGE.split()))
    cluster.spec["engine"]["podTemplate"] = {"spec": yaml.safe_load(line)}
    assert cluster.pod("llama-realtime")["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_it_names_every_object_and_every_flag(cluster: Any) -> None:
    cluster.spec["engine"] |= {"scheduler": "Priority", "accelerator": {"perInstance": 2}}
    for kind, name in cluster.made():
        assert kind in PAGE
        assert name in PAGE or f"`{name.rsplit('-', 1)[0]}-TIER`" in PAGE
    for word in cluster.pod("llama-realtime")["containers"][0]["args"]:
        assert not word.startswith("--") or f"`{word}" in PAGE or f" {word} " in PAGE
