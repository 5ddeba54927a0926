"""A pod of an engine: its flags, what it asks of a node, how it starts and how it stops."""

from typing import Any

import pytest
from click.testing import CliRunner

from multislo_engine.cli import emulate
from multislo_operator.kubernetes.objects.times import startup_most_s, stopping
from multislo_perf.profile import load_profile
from multislo_perf.sizing import batch_tokens

PROFILE = load_profile("llama-3.1-8b-h200-tp1")


def engine(cluster: Any, tier: str = "realtime") -> dict[str, Any]:
    (container,) = cluster.pod(f"llama-{tier}")["containers"]
    return container  # type: ignore[no-any-return]


def flags(args: list[str]) -> dict[str, str]:
    return {word: args[index + 1] for index, word in enumerate(args[:-1]) if word.startswith("--")}


def test_vllm_gets_the_flags_of_its_tier_and_the_users_own_after_them(cluster: Any) -> None:
    cluster.spec["engine"] = {
        "type": "VLLM", "scheduler": "Priority", "args": ["--enforce-eager"], "accelerator": {"perInstance": 2},
    }  # fmt: skip
    container = engine(cluster)
    budget = str(batch_tokens(PROFILE.latency, 0.02))
    assert container["command"] == ["vllm", "serve"]
    assert container["args"][0] == "meta-llama/Llama-3.1-8B-Instruct"
    assert container["args"][-1] == "--enforce-eager"
    assert flags(container["args"]) == {
        "--served-model-name": "llama-3.1-8b",
        "--max-num-batched-tokens": budget,
        "--max-num-seqs": str(min(1024, int(budget))),
        "--max-model-len": "16384",
        "--scheduling-policy": "priority",
        "--tensor-parallel-size": "2",
        "--port": "8000",
        "--host": "0.0.0.0",
        "--shutdown-timeout": "900",
    }


def test_no_more_sequences_than_tokens_in_an_iteration(cluster: Any) -> None:
    cluster.spec["engine"]["args"] = ["--max-num-batched-tokens=512"]
    for tier in ("realtime", "batch", "warm"):
        assert flags(engine(cluster, tier)["args"])["--max-num-seqs"] == "512"


def test_a_pod_tells_the_budget_that_its_engine_really_has(cluster: Any) -> None:
    def told(tier: str) -> str:
        return str(cluster.templates()[f"llama-{tier}"]["metadata"]["annotations"]["multislo.dev/batch-tokens"])

    assert told("warm") == "1024"
    assert told("realtime") == flags(engine(cluster)["args"])["--max-num-batched-tokens"]
    cluster.spec["engine"]["args"] = ["--max-num-batched-tokens", "768"]
    assert {told(tier) for tier in ("realtime", "batch", "warm")} == {"768"}


def test_the_emulator_takes_its_flags(emulated: Any) -> None:
    emulated.spec["engine"] |= {"scheduler": "SLOAware", "emulation": {"slowDown": 1.5, "startup": "30s"}}
    container = engine(emulated)
    assert container["image"] == "multislo:test"
    assert container["command"] == ["multislo", "emulate"]
    given = flags(container["args"])
    assert {
        "--scheduler": "slo-aware", "--slow-down": "1.5", "--startup": "30.0", "--host": "0.0.0.0",
        "--profile": "/etc/multislo/profile.yaml", "--served-name": "llama-3.1-8b", "--shutdown-timeout": "900",
    }.items() <= given.items()  # fmt: skip
    # Its own command line says whether it knows them all: only the profile's file is not here.
    answer = CliRunner().invoke(emulate, container["args"])
    assert answer.exit_code == 2
    assert "/etc/multislo/profile.yaml" in answer.output


def test_an_instance_waits_for_the_operator_twice(cluster: Any) -> None:
    pod = cluster.pod("llama-batch")
    assert pod["schedulingGates"] == [{"name": "multislo.dev/start"}]
    assert pod["readinessGates"] == [{"conditionType": "multislo.dev/serving"}]


def test_vllm_asks_for_its_accelerators_and_the_emulator_for_none(cluster: Any) -> None:
    cluster.spec["engine"]["accelerator"] = {"resource": "amd.com/gpu", "perInstance": 4}
    assert engine(cluster)["resources"]["limits"] == {"amd.com/gpu": "4"}
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in cluster.pod("llama-batch")[
        "volumes"
    ]
    cluster.spec["engine"] |= {"type": "Emulated"}
    assert "amd.com/gpu" not in engine(cluster)["resources"]["limits"]


def test_an_emulated_engine_asks_for_accelerators_where_its_user_does(emulated: Any) -> None:
    limits = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    emulated.spec["engine"]["podTemplate"] = {"spec": {"containers": [{"name": "engine", **limits}]}}
    assert engine(emulated)["resources"]["limits"] == {"memory": "1Gi", "nvidia.com/gpu": 1}
    assert engine(emulated)["resources"]["requests"] == {"cpu": "100m", "memory": "128Mi"}


@pytest.mark.parametrize("drain_timeout_s", [0.0, 0.4, 30.0, 900.0, 86_400.0])
def test_nothing_is_killed_before_the_engine_has_given_up_by_itself(drain_timeout_s: float) -> None:
    stop = stopping(drain_timeout_s)
    assert stop.finish_s >= drain_timeout_s
    assert stop.grace_s > stop.routes_close_s + stop.finish_s


def test_a_pod_stops_in_the_order_that_was_worked_out(cluster: Any) -> None:
    cluster.spec["scaling"]["scaleDown"] = {"drainTimeout": "2m"}
    pod = cluster.pod("llama-batch")
    container = engine(cluster, "batch")
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == 5
    assert flags(container["args"])["--shutdown-timeout"] == "120"
    assert pod["terminationGracePeriodSeconds"] == 5 + 120 + 15


def test_a_slow_start_is_waited_for(cluster: Any) -> None:
    probe = engine(cluster)["startupProbe"]
    assert probe["httpGet"]["path"] == "/v1/models"
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 3 * PROFILE.startup_s + 300
    assert startup_most_s(101.0) == startup_most_s(102.0)


@pytest.mark.parametrize("type_", ["VLLM", "Emulated"])
def test_where_the_cluster_gives_users_no_pod_names_one(cluster: Any, type_: str) -> None:
    cluster.spec["engine"]["type"] = type_
    cluster.context["users_assigned"] = True
    for deployment in ("llama-batch", "llama-router"):
        pod = cluster.pod(deployment)
        for security in (pod["securityContext"], *(container["securityContext"] for container in pod["containers"])):
            assert not {"runAsUser", "runAsGroup", "fsGroup"} & security.keys()
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_elsewhere_vllm_has_a_user_since_its_image_starts_as_root(cluster: Any) -> None:
    cluster.spec["engine"]["type"] = "VLLM"
    security = cluster.pod("llama-batch")["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (2000, 0, 0)
    assert "runAsUser" not in cluster.pod("llama-router")["securityContext"]


@pytest.mark.parametrize("type_", ["VLLM", "Emulated"])
def test_pods_are_restricted(cluster: Any, type_: str) -> None:
    cluster.spec["engine"]["type"] = type_
    for deployment in ("llama-batch", "llama-router"):
        pod = cluster.pod(deployment)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["securityContext"].get("runAsUser") != 0
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security.get("readOnlyRootFilesystem", False) is (container["image"] == "multislo:test")


def test_vllm_writes_where_it_may(cluster: Any) -> None:
    container = engine(cluster)
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    for variable in container["env"]:
        if variable["name"] != "USER":
            assert any(variable["value"].startswith(path) for path in mounted)


def test_the_hubs_token_comes_from_a_secret_and_weights_may_stay_in_a_claim(cluster: Any) -> None:
    cluster.spec["model"]["tokenSecret"] = "hub"
    cluster.spec["engine"]["cache"] = {"claim": "models"}
    container = engine(cluster)
    token = {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert {"name": "HF_TOKEN", "valueFrom": token} in container["env"]
    (home,) = [variable["value"] for variable in container["env"] if variable["name"] == "HF_HOME"]
    assert {"name": "weights", "mountPath": home} in container["volumeMounts"]
    claim = {"claimName": "models"}
    assert {"name": "weights", "persistentVolumeClaim": claim} in cluster.pod("llama-batch")["volumes"]
