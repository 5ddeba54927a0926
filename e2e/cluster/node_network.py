"""The room that a real node lives in: mount, network and process namespaces of its own, without an uplink, that vanish with all that is in
them when their first process ends. And the way in from the host's loopback. Used by node.py.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.control_plane import free_ports
from cluster.processes import Processes, until

HERE = Path(__file__).parent
ADDRESS = "192.168.99.1"
NOWHERE = "192.168.99.254"
"""The default route's gateway, where nobody is: a Service's address must have some route before kube-proxy can rewrite it."""
OWN_FOLDERS = ("/run", "/var/lib", "/var/log")
"""Folders of the host that the node has its own of, so that kubelet and containerd keep their usual paths and touch nothing else."""
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}  # fmt: skip
"""What a kubelet sets for the whole machine. It finds files here that say so already; the machine's own stay as they are."""
SETUP = """
set -e
for folder in $OWN_FOLDERS; do mkdir -p "$ROOM$folder"; mount --bind "$ROOM$folder" "$folder"; done
for setting in $KERNEL_SETTINGS; do
    file="$ROOM/proc/${setting%=*}"; mkdir -p "${file%/*}"; echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
done
ip link set lo up
ip link add node0 type veth peer name other0
ip link set other0 up
ip link set node0 up
ip address add "$ADDRESS/24" dev node0
ip route add default via "$NOWHERE" dev node0
echo 1 >/proc/sys/net/ipv4/ip_forward
# Else a pod that calls a Service whose pod is its neighbour on the bridge gets answers from an address that it never called.
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
touch "$ROOM/ready"
# The first process of a process namespace buries all others; the shell does it while it waits.
while :; do sleep 3600 & wait; done
"""


@dataclass(slots=True)
class Room:
    directory: Path
    processes: Processes
    pid: int
    """Of its first process, as the host counts."""
    forwarders: dict[tuple[str, int], str] = field(default_factory=dict)

    @classmethod
    def open(cls, processes: Processes, directory: Path) -> "Room":
        directory.mkdir()
        settings = " ".join(f"{name}={value}" for name, value in KERNEL_SETTINGS.items())
        holder = processes.start(
            "room",
            ["unshare", "--mount", "--propagation", "private", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
             "/bin/sh", "-c", SETUP],
            {"ROOM": str(directory), "OWN_FOLDERS": " ".join(OWN_FOLDERS), "KERNEL_SETTINGS": settings,
             "ADDRESS": ADDRESS, "NOWHERE": NOWHERE},
            Path("/"),
        )  # fmt: skip
        until((directory / "ready").exists, "the node's room is made", timeout_s=20, alive=[holder])
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        return cls(directory, processes, int(children[0]))

    @property
    def network(self) -> tuple[str, ...]:
        """Before a command: it runs in the room's network and is else an ordinary process of the host."""
        return ("nsenter", f"--target={self.pid}", "--net")

    @property
    def inside(self) -> tuple[str, ...]:
        """Before a command: it runs in the room, sees its processes and its folders, and ends with it."""
        return ("nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--wd=/")

    def run(self, *command: str) -> str:
        """A command inside, to its end; its output."""
        return subprocess.run([*self.inside, *command], check=True, capture_output=True, text=True, timeout=60).stdout

    def forward(self, address: str, port: int) -> str:
        """HOST:PORT of the loopback that leads to an address in the room: a pod's, a Service's, the API server's."""
        if (address, port) not in self.forwarders:
            (own,) = free_ports(1)
            process = self.processes.start(
                f"forward-{address}-{port}",
                [
                    sys.executable,
                    "-I",
                    "-S",
                    str(HERE / "forward.py"),
                    f"/proc/{self.pid}/ns/net",
                    str(own),
                    address,
                    str(port),
                ],
            )
            until(lambda: "ready" in process.text(), f"{process.name} listens", timeout_s=20, alive=[process])
            self.forwarders[address, port] = f"127.0.0.1:{own}"
        return self.forwarders[address, port]


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The control groups of one node, below one name in each hierarchy that the machine has."""

    name: str

    def make(self) -> None:
        for hierarchy in hierarchies():
            folder = hierarchy / self.name
            folder.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):  # Empty in a new group: nothing could run in it.
                if (folder / setting).exists():
                    (folder / setting).write_text((hierarchy / setting).read_text())

    def removal(self) -> str:
        """Shell commands that remove them when their last process is gone."""
        folders = " ".join(f"'{hierarchy / self.name}'" for hierarchy in hierarchies())
        return (
            f"for try in $(seq 100); do find {folders} -depth -type d -exec rmdir {{}} + 2>/dev/null; "
            f"ls -d {folders} >/dev/null 2>&1 || break; sleep 0.1; done; "
        )


def hierarchies() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [
        folder for folder in sorted(root.iterdir()) if (folder / "cgroup.procs").exists() and not folder.is_symlink()
    ]


@contextlib.contextmanager
def nothing_left(before: "Traces | None" = None) -> Iterator[None]:
    """Raises AssertionError with what the block left on this machine."""
    before = before or Traces.seen()
    yield
    until(lambda: not Traces.seen().since(before), "nothing is left", timeout_s=20)


@dataclass(frozen=True, slots=True)
class Traces:
    """What a node could leave behind on the machine that it ran on."""

    found: frozenset[str]

    @classmethod
    def seen(cls) -> "Traces":
        found = {f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines()}
        found |= {f"control group {path}" for h in hierarchies() for path in h.glob("*") if path.is_dir()}
        found |= {f"network interface {name}" for name in os.listdir("/sys/class/net")}
        found |= {f"network namespace {path}" for path in Path("/run/netns").glob("*")}
        found |= {f"file {path}" for folder in ("/run", "/var/lib", "/var/log") for path in Path(folder).glob("*")}
        for name in (*KERNEL_SETTINGS, "net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
            with contextlib.suppress(OSError):
                found.add(f"setting {name}={(Path('/proc/sys') / name).read_text().strip()}")
        for family in ("ip", "ip6", "inet", "bridge"):
            tables = subprocess.run(["nft", "list", "tables", family], capture_output=True, text=True, check=False)
            found |= {f"firewall {line}" for line in tables.stdout.splitlines()}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                name = os.path.basename(words[0]).decode(errors="replace")
                if name in (
                    "containerd",
                    "containerd-shim-runc-v2",
                    "kubelet",
                    "kube-proxy",
                    "pause",
                    "runc",
                    "unshare",
                    "nsenter",
                ):
                    found.add(f"process {folder.name} {name}")
        return cls(frozenset(found))

    def since(self, before: "Traces") -> list[str]:
        return sorted(self.found - before.found)
