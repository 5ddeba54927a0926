"""A cluster of fake nodes: a real control plane, kwok and pod_processes.py in the place of kubelets. On the loopback alone, without
root. Called by the suite's conftest and by `python -m cluster`.
"""

import contextlib
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.binaries import Binaries, NotHere, binaries
from cluster.control_plane import ControlPlane, check_machine
from cluster.processes import Process, Processes, at_the_end

HERE = Path(__file__).parent
NETWORKS = range(10, 250)
"""Pods' addresses are 127.N.x.y, so that a process of this machine can really listen on them; N is each cluster's own."""
NETWORK_PORT = 19999
"""Who listens on it at 127.N.0.1 has network N."""
LOST_S = 20
"""Without a heartbeat for so long a node is lost. Kubernetes' own value is 50."""
EVICTED_S = 5
"""A lost node's pods are deleted after so long. Kubernetes' own value is 300."""
FAKE_NODE = "kwok.x-k8s.io/node"


@dataclass(slots=True)
class KwokCluster:
    """What runs; `plane` is None where the cluster is somebody else's."""

    directory: Path
    binaries: Binaries
    kubeconfig: Path
    processes: Processes
    plane: ControlPlane | None
    network: str
    """Pods' addresses begin with it."""
    kwok: Process
    pod_processes: Process


@contextlib.contextmanager
def kwok_cluster(existing: str | None = None) -> Iterator[KwokCluster]:
    """Up in about 5 s; at the end nothing is left. `existing`: the kubeconfig of a cluster to add kwok and its nodes to instead.

    Raises NotHere; Ended and TimeoutError with the servers' last words. All that they print lies in a folder that is removed, but for
    a copy where MULTISLO_E2E_LOGS names a folder.
    """
    check_machine()
    programs = binaries()
    directory = Path(tempfile.mkdtemp(prefix="multislo-e2e-"))
    with (
        # Twice: a server that is being killed may write into a folder that is being removed.
        at_the_end(f"rm -rf '{directory}' 2>/dev/null || {{ sleep 1; rm -rf '{directory}'; }}"),
        _network() as network,
        Processes(directory / "logs") as processes,
    ):
        if existing is None:
            plane = ControlPlane.start(
                processes, programs, directory,
                api_server_flags=(
                    f"--default-unreachable-toleration-seconds={EVICTED_S}",
                    f"--default-not-ready-toleration-seconds={EVICTED_S}",
                ),
                controller_manager_flags=(
                    "--allocate-node-cidrs=false",  # Else kwok gives its pods these addresses, which are nobody's.
                    f"--node-monitor-grace-period={LOST_S}s", "--node-monitor-period=2s",
                ),
            )  # fmt: skip
            kubeconfig = plane.kubeconfig()
        else:
            plane, kubeconfig = None, Path(existing).expanduser()
        kwok = processes.start(
            "kwok",
            [
                programs["kwok"], f"--kubeconfig={kubeconfig}", f"--config={HERE / 'stages.yaml'}",
                f"--cidr={network}.0.0/17",
                "--manage-all-nodes=false", f"--manage-nodes-with-annotation-selector={FAKE_NODE}=fake",
                "--node-lease-duration-seconds=0",  # pod_processes.py gives the heartbeats: it can also stop them.
                "--server-address=127.0.0.1:0",
            ],
            {"HOME": str(directory)},  # It reads settings from there.
        )  # fmt: skip
        pods = processes.start(
            "pod-processes",
            [sys.executable, "-m", "cluster.pod_processes", str(kubeconfig), str(directory / "pods"), network],
            {"PYTHONPATH": str(HERE.parent)},
        )
        try:
            yield KwokCluster(directory, programs, kubeconfig, processes, plane, network, kwok, pods)
        finally:
            _keep_logs(directory)


def node(name: str, gpus: int, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """A fake node's manifest. Named process-*: its pods run as processes; any other name: kwok only says that they run."""
    amounts = {"cpu": "64", "memory": "512Gi", "pods": "1000", "ephemeral-storage": "1Ti"}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {FAKE_NODE: "fake"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "e2e.multislo.dev/node": "fake",
                **(labels or {}),
            },
        },
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}],
            "nodeInfo": dict.fromkeys(
                ("machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "kubeProxyVersion"), ""
            )
            | {
                "kubeletVersion": "fake",
                "containerRuntimeVersion": "fake",
                "operatingSystem": "linux",
                "architecture": "amd64",
            },
        },
    }


@contextlib.contextmanager
def _network() -> Iterator[str]:
    """The first two bytes of pods' addresses, taken for as long as the block lasts: other clusters of this machine have others."""
    for number in random.sample(NETWORKS, k=len(NETWORKS)):
        with socket.socket() as held:
            try:
                held.bind((f"127.{number}.0.1", NETWORK_PORT))
                held.listen()
            except OSError:
                continue
            yield f"127.{number}"
            return
    raise NotHere(f"all {len(NETWORKS)} networks of the loopback are taken by other clusters")


def _keep_logs(directory: Path) -> None:
    wanted = os.environ.get("MULTISLO_E2E_LOGS")
    for log in directory.rglob("*.log") if wanted else []:
        copy = Path(wanted or "") / log.relative_to(directory)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, copy)
