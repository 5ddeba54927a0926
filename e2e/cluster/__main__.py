"""`python -m cluster`, in e2e/: a cluster of fake nodes to play with. Ctrl-C ends it and leaves nothing."""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import threading

from cluster.api import Api
from cluster.binaries import NotHere, binaries
from cluster.kwok import KwokCluster, kwok_cluster, node
from cluster.processes import Ended, say
from cluster.scene import existing_cluster

CANNOT_RUN = 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    parser.add_argument(
        "what", choices=["build", "up", "run"], help="build: only the programs; run: CMD with KUBECONFIG set"
    )
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="fake nodes (2)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="nodes whose pods run as processes (1)")
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="nvidia.com/gpu of each (8)")
    # What follows `run` is the command's own, options and all; before it, and after `up`, they are this one's.
    words = sys.argv[1:]
    own = words.index("run") + 1 if "run" in words else len(words)
    given = parser.parse_args(words[:own])
    given.command = words[own:]
    if given.what == "run" and not given.command:
        parser.error("run: give a command, for example: run kubectl get nodes")
    for number in (signal.SIGINT, signal.SIGTERM):  # A shell that starts us behind it has SIGINT ignored.
        signal.signal(number, signal.default_int_handler)
    try:
        if given.what == "build":
            print(binaries().directory)
            return 0
        with kwok_cluster(existing_cluster()) as running:
            asyncio.run(_nodes(running, given.nodes, given.processes, given.gpus))
            return _run(running, given.command) if given.what == "run" else _wait(running)
    except KeyboardInterrupt:
        return 0
    except NotHere as error:
        say(f"cannot run here: {error}")
    except (Ended, TimeoutError) as error:
        say(error)
    return CANNOT_RUN


def _run(running: KwokCluster, command: list[str]) -> int:
    path = f"{running.binaries.directory}:{os.environ.get('PATH', '')}"
    environment = {**os.environ, "KUBECONFIG": str(running.kubeconfig), "PATH": path}
    return subprocess.run(["/usr/bin/env", *command], env=environment, check=False).returncode


def _wait(running: KwokCluster) -> int:
    print(f"export KUBECONFIG={running.kubeconfig} PATH={running.binaries.directory}:$PATH", flush=True)
    say(f"logs are in {running.directory}; Ctrl-C ends it")
    threading.Event().wait()
    return 0


async def _nodes(running: KwokCluster, fake: int, processes: int, gpus: int) -> None:
    async with await Api.connect(running.kubeconfig) as api:
        for name in [f"kwok-{index}" for index in range(fake)] + [f"process-{index}" for index in range(processes)]:
            await api.create("/api/v1/nodes", node(name, gpus))


if __name__ == "__main__":
    sys.exit(main())
