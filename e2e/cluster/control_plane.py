"""etcd, API server, controller manager and scheduler of one cluster, as processes on this machine. Started by kwok.py for the suite
of fake nodes, and by a suite of real nodes.

Alone on the loopback:

    with Processes(directory / "logs") as processes:
        plane = ControlPlane.start(processes, binaries(), directory)

Inside a network namespace, with nodes that reach it on the address of their network (`lo` must be up in there):

        plane = ControlPlane.start(
            processes, binaries(), directory,
            address="192.168.99.1",                       # bind, advertise, the server in every kubeconfig, in the certificate
            prefix=("nsenter", "--net=/run/netns/NAME"),  # goes before every command, the readiness probe's too
            api_server_flags=("--feature-gates=...",),    # a flag that is given twice: the last one wins
            controller_manager_flags=("--node-monitor-grace-period=20s",),
        )
        plane.kubeconfig("admin")                         # as user kubernetes-admin of system:masters
        plane.user("kubelet-n1", "system:node:n1", "system:nodes")  # a kubeconfig for anybody else
        plane.authority.issue("kubelet-n1-server", "n1", hosts=("192.168.99.1",))
        plane.outside("https://127.0.0.1:45678")          # an admin kubeconfig by way of a forwarder

`plane.api_server`, `.etcd`, `.controller_manager` and `.scheduler` are Processes: stop, kill, pause, start them as a scenario wants.
"""

import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cluster.binaries import Binaries
from cluster.keys import Authority, Pair, service_account_keys
from cluster.processes import Ended, Process, Processes

READY_S = 120.0
"""From nothing to a default ServiceAccount: 5 s on an idle machine."""
PORTS = range(20000, 32000)
"""Below what the kernel gives to outgoing connections, so that a port found free stays free until its server takes it."""
SERVICE_CIDR = "10.96.0.0/24"
POD_CIDR = "10.244.0.0/16"
API_NAMES = (
    "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost",
    "127.0.0.1", "10.96.0.1",
)  # fmt: skip
LOOPBACK = "127.0.0.1"


@dataclass(slots=True)
class ControlPlane:
    directory: Path
    binaries: Binaries
    url: str
    authority: Authority
    processes: Processes
    etcd: Process = field(init=False)
    api_server: Process = field(init=False)
    controller_manager: Process = field(init=False)
    scheduler: Process = field(init=False)

    @classmethod
    def start(
        cls,
        processes: Processes,
        binaries: Binaries,
        directory: Path,
        *,
        address: str = LOOPBACK,
        prefix: Sequence[str] = (),
        api_server_flags: Sequence[str] = (),
        controller_manager_flags: Sequence[str] = (),
        ready_s: float = READY_S,
    ) -> "ControlPlane":
        """Returns when it is ready: all four answer and namespace default has its ServiceAccount. Raises Ended, TimeoutError."""
        authority = Authority.create(directory / "keys")
        api, peer, client, manager, scheduler = free_ports(5)
        plane = cls(directory, binaries, f"https://{address}:{api}", authority, processes)
        admin = authority.issue("admin", "kubernetes-admin", "system:masters")
        plane._write("admin", admin)
        start = _Starting(plane, tuple(prefix), address, service_account_keys(authority.directory))
        plane.etcd = start.etcd(client, peer)
        plane.api_server = start.api_server(api, client, api_server_flags)
        # The other two end at once where their roles are not there yet.
        start.wait(admin, ready_s, f"{plane.url}/readyz")
        plane.controller_manager = start.controller_manager(manager, controller_manager_flags)
        plane.scheduler = start.scheduler(scheduler)
        start.wait(
            admin, ready_s,
            f"https://{LOOPBACK}:{manager}/healthz", f"https://{LOOPBACK}:{scheduler}/healthz",
            f"{plane.url}/api/v1/namespaces/default/serviceaccounts/default",
        )  # fmt: skip
        return plane

    def kubeconfig(self, name: str = "admin") -> Path:
        return self.directory / f"{name}.kubeconfig"

    def user(self, file: str, user: str, group: str | None = None) -> Path:
        """The kubeconfig of a user with a certificate of its own, written as FILE.kubeconfig."""
        return self._write(file, self.authority.issue(file, user, group))

    def outside(self, url: str) -> Path:
        """An admin's kubeconfig that reaches the API server by another URL, whose host must be one of the certificate's."""
        pair = Pair(self.authority.directory / "admin.crt", self.authority.directory / "admin.key")
        return self._write("outside", pair, url)

    def _write(self, file: str, pair: Pair, url: str | None = None) -> Path:
        cluster = {"server": url or self.url, "certificate-authority": str(self.authority.own.certificate)}
        user = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
        path = self.kubeconfig(file)
        path.touch(mode=0o600)
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "e2e", "cluster": cluster}],
                    "users": [{"name": file, "user": user}],
                    "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": file}}],
                    "current-context": "e2e",
                }
            )
        )
        return path


@dataclass(frozen=True, slots=True)
class _Starting:
    """The command lines. Every flag that is not a path or an address says why it is there, here or at its neighbour."""

    plane: ControlPlane
    prefix: tuple[str, ...]
    address: str
    account_keys: tuple[Path, Path]

    def etcd(self, client: int, peer: int) -> Process:
        clients, peers = f"http://{LOOPBACK}:{client}", f"http://{LOOPBACK}:{peer}"
        return self._start(
            "etcd", "etcd",
            f"--data-dir={self.plane.directory / 'etcd'}", "--unsafe-no-fsync=true",  # Nothing in it outlives the cluster.
            f"--listen-client-urls={clients}", f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=default={peers}",
        )  # fmt: skip

    def api_server(self, port: int, etcd: int, flags: Sequence[str]) -> Process:
        authority = self.plane.authority
        names = dict.fromkeys((*API_NAMES, self.address))
        server = authority.issue("apiserver", "kube-apiserver", hosts=tuple(names))
        kubelets = authority.issue("apiserver-kubelet-client", "apiserver-kubelet-client", "system:masters")
        proxy = authority.issue("front-proxy-client", "front-proxy-client")
        # Its own address as the Service kubernetes' endpoint: an EndpointSlice refuses the loopback, and it would try for ever.
        reconciler = ["--endpoint-reconciler-type=none"] if self.address.startswith("127.") else []
        return self._start(
            "kube-apiserver", "kube-apiserver",
            f"--etcd-servers=http://{LOOPBACK}:{etcd}",
            f"--bind-address={'127.0.0.1' if self.address == LOOPBACK else '0.0.0.0'}",
            f"--secure-port={port}", f"--advertise-address={self.address}", *reconciler,
            f"--tls-cert-file={server.certificate}", f"--tls-private-key-file={server.key}",
            f"--client-ca-file={authority.own.certificate}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-signing-key-file={self.account_keys[0]}",
            f"--service-account-key-file={self.account_keys[1]}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
            f"--kubelet-client-certificate={kubelets.certificate}", f"--kubelet-client-key={kubelets.key}",
            "--kubelet-preferred-address-types=InternalIP", "--profiling=false",
            # Without these the controller manager complains for ever that it cannot trust proxied users.
            f"--requestheader-client-ca-file={authority.own.certificate}",
            "--requestheader-allowed-names=front-proxy-client", "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={proxy.certificate}", f"--proxy-client-key-file={proxy.key}",
            *flags,
        )  # fmt: skip

    def controller_manager(self, port: int, flags: Sequence[str]) -> Process:
        authority = self.plane.authority
        kubeconfig = self.plane.user("controller-manager", "system:kube-controller-manager")
        return self._start(
            "kube-controller-manager", "kube-controller-manager",
            f"--kubeconfig={kubeconfig}", f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--bind-address={LOOPBACK}", f"--secure-port={port}",
            f"--cert-dir={self.plane.directory / 'controller-manager'}",
            "--leader-elect=false", "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self.account_keys[0]}",
            f"--root-ca-file={authority.own.certificate}",
            f"--cluster-signing-cert-file={authority.own.certificate}",
            f"--cluster-signing-key-file={authority.own.key}",
            "--allocate-node-cidrs=true", f"--cluster-cidr={POD_CIDR}", f"--service-cluster-ip-range={SERVICE_CIDR}",
            # Its default of 20 a second is the slowest part of a start: the default ServiceAccount takes 5 s with it, and 1 s so.
            "--kube-api-qps=300", "--kube-api-burst=600", "--profiling=false",
            *flags,
        )  # fmt: skip

    def scheduler(self, port: int) -> Process:
        kubeconfig = self.plane.user("scheduler", "system:kube-scheduler")
        return self._start(
            "kube-scheduler", "kube-scheduler",
            f"--kubeconfig={kubeconfig}", f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--bind-address={LOOPBACK}", f"--secure-port={port}", f"--cert-dir={self.plane.directory / 'scheduler'}",
            "--leader-elect=false", "--kube-api-qps=300", "--kube-api-burst=600", "--profiling=false",
        )  # fmt: skip

    def wait(self, admin: Pair, ready_s: float, *urls: str) -> None:
        script = Path(__file__).with_name("ready.py")
        keys = [str(path) for path in (self.plane.authority.own.certificate, admin.certificate, admin.key)]
        probe = subprocess.Popen(
            [*self.prefix, sys.executable, "-I", "-S", str(script), *keys, str(ready_s), *urls],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        servers = list(self.plane.processes.all.values())
        with probe:
            try:
                while True:
                    try:
                        code = probe.wait(0.1)
                        break
                    except subprocess.TimeoutExpired:
                        for server in servers:
                            server.must_live()
            except BaseException:
                probe.kill()
                raise
            if code != 0:
                assert probe.stdout is not None
                words = "\n".join(f"-- {server.name}\n{server.tail()}" for server in servers)
                raise TimeoutError(f"the control plane is not ready: {probe.stdout.read().strip()}\n{words}")

    def _start(self, name: str, program: str, *flags: str) -> Process:
        return self.plane.processes.start(name, [*self.prefix, self.plane.binaries[program], *flags])


def free_ports(number: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    found: list[int] = []
    for port in random.sample(PORTS, k=len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == number:
            return found
    raise Ended(f"fewer than {number} of the ports {PORTS.start} to {PORTS.stop - 1} are free")


def check_machine() -> None:
    """Raises NotHere where no cluster can be started whatever is built."""
    from cluster.binaries import NotHere

    if sys.platform != "linux":
        raise NotHere(f"a cluster runs on Linux, this is {sys.platform}")
    for program in ("setpriv",):
        if shutil.which(program) is None:
            raise NotHere(f"{program} is not on PATH (package util-linux)")
