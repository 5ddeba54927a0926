"""Processes that end with the one that started them, whatever becomes of it: an exception, Ctrl-C, SIGKILL. Used for every server of a
cluster, for the pods of process nodes and for operators under test.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

STOP_S = 15.0
"""From SIGTERM to SIGKILL when a cluster ends."""
TAIL_LINES = 15


class Ended(Exception):
    """A server ended that must not. The message holds its last words."""


class Process:
    """One program that can be stopped, killed, paused and started again, with all its output in `log`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None,
        directory: Path | None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self._environment = dict(environment or {})
        self._directory = directory
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._popen is None else self._popen.poll()

    def start(self) -> "Process":
        """Call it on the main thread: the kernel ends the child when the *thread* that started it is gone."""
        assert not self.alive, f"{self.name} runs already"
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C comes to us alone, and we stop the servers in order.
            self._popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self.command],
                env={**os.environ, **self._environment}, cwd=self._directory,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        return self

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut would: no last words, nothing handed over."""
        self._signal(signal.SIGKILL)
        self.wait()

    def pause(self) -> None:
        """It holds its connections and answers nothing, until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self, grace_s: float = STOP_S) -> int:
        """SIGTERM, and after `grace_s` SIGKILL; the exit code."""
        self.terminate()
        self.resume()
        try:
            return self.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def wait(self, timeout_s: float | None = None) -> int:
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.wait(timeout_s)

    def must_live(self) -> None:
        if not self.alive:
            raise Ended(f"{self.name} ended with exit code {self.exit_code}. Its last words:\n{self.tail()}")

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = TAIL_LINES) -> str:
        return "\n".join(self.text().splitlines()[-lines:])

    def _signal(self, number: int) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


class Processes:
    """Those of one cluster. As a context manager it stops them in the reverse order of their start."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.all: dict[str, Process] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> Process:
        """`environment` is added to our own. The log is NAME.log; a name may be used again after its process has ended."""
        earlier = self.all.pop(name, None)
        assert earlier is None or not earlier.alive, f"{name} runs already"
        process = Process(name, command, self.logs / f"{name}.log", environment, directory)
        self.all[name] = process
        return process.start()

    def stop_all(self) -> None:
        for process in reversed(self.all.values()):
            process.stop()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not leave half of them: the rest gets no grace then, and its end is the kernel's word.
        try:
            self.stop_all()
        except BaseException:
            for process in self.all.values():
                process.kill()
            raise


@contextlib.contextmanager
def at_the_end(commands: str, *, log: Path | None = None) -> Iterator[None]:
    """Runs shell commands when the block is left, and also when this whole process is killed: a shell waits for the end of a pipe.

    For what the kernel does not take back by itself: folders, mounts, network namespaces, sysctls.
    """
    output = subprocess.DEVNULL if log is None else log.open("ab")
    shell = subprocess.Popen(
        ["/bin/sh", "-c", f"read -r _; {commands}"],
        stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True, cwd="/",
    )  # fmt: skip
    if log is not None:
        output.close()  # type: ignore[union-attr]
    try:
        yield
    finally:
        assert shell.stdin is not None
        shell.stdin.close()
        shell.wait()


def until(
    ready: Callable[[], object], what: str, *, timeout_s: float, every_s: float = 0.05, alive: Sequence[Process] = ()
) -> None:
    """Waits for something that has no asyncio around it. Raises TimeoutError, or Ended when one of `alive` has gone meanwhile."""
    end = time.monotonic() + timeout_s
    while not ready():
        for process in alive:
            process.must_live()
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not so after {timeout_s:.0f} s")
        time.sleep(every_s)


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)
