"""A cluster with one real node: a control plane, kubelet, containerd and kube-proxy, the product's own image, all in namespaces without
an uplink that vanish with their first process. Called by the suite's conftest; `python -m cluster.node`
starts one to play with, Ctrl-C ends it. Needs root on Linux, Debian's or Ubuntu's packages, Go.

DNS is left out: what runs here finds the API server and the pods by address. A NetworkPolicy is accepted and enforced by nobody.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.binaries import Binaries, NotHere, binaries, cache
from cluster.containers import check_tools, start_containerd, write_network
from cluster.control_plane import POD_CIDR, ControlPlane, check_machine
from cluster.image import IMAGE, image_store
from cluster.node_network import ADDRESS, Cgroups, Room, hierarchies
from cluster.processes import Process, Processes, at_the_end, say, until

NODE = "real-0"
NODE_PODS = POD_CIDR.replace("/16", "/24")
"""The first node's share of the pods' addresses; asserted once the controller manager has given it."""
GPU = "nvidia.com/gpu"
GPUS = 8
READY_S = 120.0
IMAGE_VARIABLE = "MULTISLO_E2E_IMAGE"
TOOLS = (
    ("nft", "nftables"), ("ip", "iproute2"), ("nsenter", "util-linux"), ("unshare", "util-linux"), ("setpriv", "util-linux"),
    ("buildah", "buildah"), ("mmdebstrap", "mmdebstrap"), ("cc", "gcc"), ("git", "git"),
)  # fmt: skip


@dataclass(slots=True)
class Servers:
    """What a node of our own runs on; each can be killed, paused and started again."""

    plane: ControlPlane
    room: Room
    containerd: Process
    kubelet: Process
    proxy: Process


@dataclass(slots=True)
class NodeCluster:
    """A cluster with real pods. `kubeconfig` is an administrator's, by way of the host's loopback. `own` is None where the cluster is
    somebody else's."""

    directory: Path
    binaries: Binaries
    kubeconfig: Path
    image: str
    processes: Processes
    own: Servers | None = None

    def open_service(self, namespace: str, name: str, port: int) -> str:
        """HOST:PORT of the loopback that leads to a Service: by its address and kube-proxy; in a foreign cluster to one pod behind it."""
        return self._open("service", "{.spec.clusterIP}", namespace, name, port)

    def open_pod(self, namespace: str, name: str, port: int) -> str:
        """HOST:PORT of the loopback that leads to a pod, ready or not."""
        return self._open("pod", "{.status.podIP}", namespace, name, port)

    def kill_container(self, namespace: str, pod: str, container: str) -> None:
        """SIGKILL to its processes, as the kernel's when memory runs out. Its kubelet starts it again. Only on a node of our own."""
        path = f'{{.status.containerStatuses[?(@.name=="{container}")].containerID}}'
        told = self.kubectl("get", "pod", pod, f"--namespace={namespace}", "-o", f"jsonpath={path}")
        groups = [
            group
            for h in hierarchies()
            for group in h.glob(f"multislo-{self.directory.name}/**/{told.rpartition('/')[2]}")
        ]
        pids = {int(line) for group in groups for line in (group / "cgroup.procs").read_text().split()}
        assert pids, f"{namespace}/{pod}: container {container} ({told}) has no process"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """Its output. Raises CalledProcessError, with kubectl's words in stderr."""
        command = [self.binaries["kubectl"], f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=True).stdout

    def _open(self, kind: str, address: str, namespace: str, name: str, port: int) -> str:
        if self.own is not None:
            found = self.kubectl("get", kind, name, f"--namespace={namespace}", "-o", f"jsonpath={address}")
            return self.own.room.forward(found.strip(), port)
        forward = self.processes.start(
            f"forward-{namespace}-{kind}-{name}-{port}",
            [self.binaries["kubectl"], f"--kubeconfig={self.kubeconfig}", f"--namespace={namespace}", "port-forward", f"{kind}/{name}",
             f":{port}"],
        )  # fmt: skip
        said = re.compile(r"^Forwarding from (127\.0\.0\.1:\d+)", re.MULTILINE)
        until(lambda: said.search(forward.text()), f"{forward.name} listens", timeout_s=30, alive=[forward])
        found_at = said.search(forward.text())
        assert found_at is not None
        return found_at[1]


@contextlib.contextmanager
def node_cluster(existing: str | None = None) -> Iterator[NodeCluster]:
    """Up in about 15 s with everything built; at the end nothing is left, nor after Ctrl-C or SIGKILL.

    `existing`: the kubeconfig of a cluster to use instead. Its nodes have the image, called IMAGE_VARIABLE, and accelerators already.
    Raises NotHere; Ended and TimeoutError with the servers' last words.
    """
    check_machine()
    if existing is not None:
        with _foreign(Path(existing).expanduser()) as cluster:
            yield cluster
        return
    if os.geteuid() != 0:
        raise NotHere("a real node needs root: it mounts, and gives processes their own networks and control groups")
    check_tools(TOOLS)
    programs, store = binaries(), image_store()
    running = cache() / "running"  # Beside the image store: its files are linked, not copied.
    running.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="node-", dir=running))
    cgroups = Cgroups(f"multislo-{directory.name}")
    began = time.monotonic()
    with (
        at_the_end(f"{cgroups.removal()} rm -rf '{directory}' 2>/dev/null || {{ sleep 1; rm -rf '{directory}'; }}"),
        _killed_at_the_end(Processes(directory / "logs")) as processes,
    ):
        try:
            cgroups.make()
            room = Room.open(processes, directory / "room")
            write_network(room, NODE_PODS)
            containerd = start_containerd(processes, room, store)
            plane = ControlPlane.start(processes, programs, directory, address=ADDRESS, prefix=room.network)
            kubelet = _start_kubelet(processes, room, plane, cgroups)
            own = Servers(plane, room, containerd, kubelet, _start_proxy(processes, room, plane))
            kubeconfig = plane.outside(f"https://{room.forward(ADDRESS, int(plane.url.rpartition(':')[2]))}")
            cluster = NodeCluster(directory, programs, kubeconfig, IMAGE, processes, own)
            _wait_for_node(cluster, own)
            say(f"a real node is Ready after {time.monotonic() - began:.1f} s")
            yield cluster
        finally:
            _keep_logs(directory)


@contextlib.contextmanager
def _foreign(kubeconfig: Path) -> Iterator[NodeCluster]:
    directory = Path(tempfile.mkdtemp(prefix="multislo-e2e-"))
    with at_the_end(f"rm -rf '{directory}'"), _killed_at_the_end(Processes(directory / "logs")) as processes:
        image = os.environ.get(IMAGE_VARIABLE, IMAGE)
        yield NodeCluster(directory, binaries(), kubeconfig, image, processes)


def _start_kubelet(processes: Processes, room: Room, plane: ControlPlane, cgroups: Cgroups) -> Process:
    server = plane.authority.issue("kubelet-server", NODE, hosts=(ADDRESS, NODE))
    settings = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(plane.authority.own.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(server.certificate),
        "tlsPrivateKeyFile": str(server.key),
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroups.name}",
        "resolvConf": "",
        # The disk is the developer's: it is neither measured against a node's usual limits nor cleared of images.
        "evictionHard": {name: "0%" for name in ("imagefs.available", "nodefs.available", "nodefs.inodesFree")},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 110,
        "nodeStatusUpdateFrequency": "4s",  # A patched number of accelerators is known to the scheduler after so long.
        "shutdownGracePeriod": "0s",
        "syncFrequency": "10s",
    }
    config = plane.directory / "kubelet.json"
    config.write_text(json.dumps(settings))
    kubeconfig = plane.user("kubelet", f"system:node:{NODE}", "system:nodes")
    return processes.start(
        "kubelet",
        [*room.inside, plane.binaries["kubelet"], f"--config={config}", f"--kubeconfig={kubeconfig}", f"--node-ip={ADDRESS}",
         f"--hostname-override={NODE}", "--node-labels=e2e.multislo.dev/node=real"],
    )  # fmt: skip


def _start_proxy(processes: Processes, room: Room, plane: ControlPlane) -> Process:
    settings = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_CIDR,
        "clientConnection": {"kubeconfig": str(plane.user("kube-proxy", "system:kube-proxy"))},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    }
    config = plane.directory / "kube-proxy.json"
    config.write_text(json.dumps(settings))
    return processes.start(
        "kube-proxy",
        [*room.inside, plane.binaries["kube-proxy"], f"--config={config}", f"--hostname-override={NODE}"],
    )  # fmt: skip


def _wait_for_node(cluster: NodeCluster, own: Servers) -> None:
    servers = (own.containerd, own.kubelet, own.proxy, own.plane.api_server)

    def wait(path: str, wanted: str) -> None:
        def so() -> bool:
            with contextlib.suppress(subprocess.CalledProcessError):
                return cluster.kubectl("get", "node", NODE, "-o", f"jsonpath={path}").strip() == wanted
            return False

        until(so, f"{path} of node {NODE} is {wanted!r}", timeout_s=READY_S, alive=servers, every_s=0.1)

    wait("{.metadata.name}", NODE)
    patch = [{"op": "add", "path": f"/status/capacity/{GPU.replace('/', '~1')}", "value": str(GPUS)}]
    cluster.kubectl("patch", "node", NODE, "--subresource=status", "--type=json", "-p", json.dumps(patch))
    wait('{.status.conditions[?(@.type=="Ready")].status}', "True")
    wait("{.status.allocatable.nvidia\\.com/gpu}", str(GPUS))
    wait("{.spec.podCIDR}", NODE_PODS)
    wait("{.spec.taints}", "")


@contextlib.contextmanager
def _killed_at_the_end(processes: Processes) -> Iterator[Processes]:
    """Nothing here has anything to hand over: the room ends with its first process, and the kernel takes all that is in it."""
    try:
        yield processes
    finally:
        for process in processes.all.values():
            process.kill()


def _keep_logs(directory: Path) -> None:
    wanted = os.environ.get("MULTISLO_E2E_LOGS")
    for log in [*directory.glob("logs/*.log"), *directory.glob("room/var/log/pods/*/*/*.log")] if wanted else []:
        copy = Path(wanted or "") / log.relative_to(directory)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            shutil.copyfile(log, copy)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # Also where a shell that put us behind it had them ignored.
        signal.signal(number, signal.default_int_handler)
    try:
        with node_cluster() as running_cluster:
            print(
                f"export KUBECONFIG={running_cluster.kubeconfig} PATH={running_cluster.binaries.directory}:$PATH",
                flush=True,
            )
            signal.pause()
    except KeyboardInterrupt:
        pass
    except NotHere as error:
        say(f"cannot run here: {error}")
        sys.exit(2)
