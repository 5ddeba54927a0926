"""Child processes of a measurement: pinned to a core, waited for, and ended when the block that started them ends, in every case."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

STOP_S = 5.0
TAIL_LINES = 8
TICKS_S = 1.0 / os.sysconf("SC_CLK_TCK")


class CannotMeasure(Exception):
    """A tool is missing or a part did not start; the message says what to do."""


def multislo(*args: str) -> list[str]:
    """The command line of one of our own programs in this very environment."""
    return [sys.executable, "-c", "from multislo.command import main; main()", *args]


def need(tool: str, package: str) -> str:
    """The path of a tool, or an error that names the Debian package that has it."""
    found = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")
    if found is None:
        raise CannotMeasure(f"{tool} is not here; install it: apt-get install -y {package}")
    return found


def free_ports(count: int) -> list[int]:
    """Free ports on the loopback address."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def running(
    name: str, command: Sequence[str], log: Path, core: int | None = None, patience_s: float = STOP_S
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a program in its own process group, with its output in `log`, and ends it and the whole group at the end."""
    pinned = [need("taskset", "util-linux"), "-c", str(core), *command] if core is not None else list(command)
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
        if process.poll() is not None:
            raise CannotMeasure(f"{name} ended by itself with {process.returncode}:\n{tail(log)}")
    finally:
        stop(process, patience_s)


def stop(process: subprocess.Popen[bytes], patience_s: float = STOP_S) -> None:
    """SIGTERM to the process, which ends its own children; SIGKILL to what is left of its group then."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, within_s: float = 60.0) -> None:
    """Until the URL answers 200, or an error with the end of the program's own output."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if process.poll() is not None:
            raise CannotMeasure(f"{url}: the program ended with {process.returncode}:\n{tail(log)}")
        with suppress(URLError, OSError), urlopen(url, timeout=2.0) as response:
            if response.status == 200:
                return
        time.sleep(0.05)
    raise CannotMeasure(f"{url} did not answer within {within_s:.0f} s:\n{tail(log)}")


def put_json(url: str, body: bytes) -> None:
    request = Request(url, data=body, method="PUT", headers={"content-type": "application/json"})
    with urlopen(request, timeout=5.0) as response:
        response.read()


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, all threads, in seconds (to the kernel's tick, 10 ms)."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    # The name in parentheses may hold blanks; after it come state and 10 more fields before utime and stime.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICKS_S


def tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join(f"  {line[:200]}" for line in lines)
