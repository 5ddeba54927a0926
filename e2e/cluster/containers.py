"""containerd and the pods' network of one real node, inside its room. Used by node.py."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster.binaries import NotHere, debian
from cluster.image import PAUSE, clone
from cluster.node_network import Room
from cluster.processes import Process, Processes, until

SOCKET = "/run/containerd/containerd.sock"
READY_S = 60.0


def start_containerd(processes: Processes, room: Room, store: Path) -> Process:
    """Returns when it answers. `store`: a containerd root with the images in it, on the file system of the room; it stays as it is."""
    root = room.directory / "var/lib/containerd"
    clone(store, root)
    runtime, plugins = debian("runc") / "usr/sbin/runc", debian("containernetworking-plugins") / "usr/lib/cni"
    config = room.directory / "containerd.toml"
    config.write_text(_config(runtime, plugins, room.directory / "cni"))
    programs = debian("containerd") / "usr/bin"
    process = processes.start(
        "containerd",
        [*room.inside, "env", f"PATH={programs}:{runtime.parent}:{os.environ['PATH']}", "containerd", "--config", str(config)],
    )  # fmt: skip
    answers = [*room.inside, str(programs / "ctr"), "--address", SOCKET, "version"]
    until(
        lambda: subprocess.run(answers, capture_output=True, check=False).returncode == 0,
        "containerd answers", timeout_s=READY_S, alive=[process],
    )  # fmt: skip
    return process


def write_network(room: Room, pods: str) -> None:
    """Pods of this node get addresses of `pods` on a bridge. The folder must be there before containerd looks at it."""
    network = {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isDefaultGateway": True,
                "hairpinMode": True,  # A pod may call the Service that it is behind.
                "ipMasq": False,  # There is nowhere to go.
                "ipam": {"type": "host-local", "ranges": [[{"subnet": pods}]]},
            }
        ],
    }
    folder = room.directory / "cni"
    folder.mkdir(exist_ok=True)
    half = folder / "pods.half"
    half.write_text(json.dumps(network))
    half.rename(folder / "pods.conflist")


def _config(runtime: Path, plugins: Path, networks: Path) -> str:
    return f"""
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  # Without the right to make a process less likely to be killed than it was, runc would end with "can't get final child's PID".
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{networks}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runtime}"
        SystemdCgroup = false
"""


def check_tools(names: Sequence[tuple[str, str]]) -> None:
    """(program, package) pairs. Raises NotHere with the one command that brings all that is missing."""
    missing = [package for program, package in names if shutil.which(program) is None]
    if missing:
        raise NotHere(
            f"programs are missing: apt-get install --no-install-recommends {' '.join(dict.fromkeys(missing))}"
        )
