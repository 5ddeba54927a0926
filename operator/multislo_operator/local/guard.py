"""The guard: a small process that ends the fleet's processes when `multislo up` itself is gone, however it died. Started by `Guarding`.

Its standard input is a pipe from `multislo up`, which tells it each process group (`+PID`, and `-PID` when that is over). When the
pipe ends, what is still on the list gets SIGTERM and then SIGKILL, with everything that it started: a kernel's parent-death signal
would reach only the first process of an engine, and not its workers. Nothing but the standard library: it must be up in no time.
"""

import contextlib
import os
import signal
import sys
import time

TERM_GRACE_S = 3.0
POLL_S = 0.05


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        group = int(line[1:])
        if line.startswith(b"+"):
            groups.add(group)
        else:
            groups.discard(group)
    end(groups)


def end(groups: set[int]) -> None:
    for group in groups:
        send(group, signal.SIGTERM)
    deadline = time.monotonic() + TERM_GRACE_S
    while any(map(is_there, groups)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for group in groups:
        send(group, signal.SIGKILL)


def send(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
