"""One child process: started in a process group of its own, logged to a file, ended with all that it started. Used for the router
and for engines; `Guarding` ends them when this process dies without a chance to."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from multislo_operator.local import guard

LOG_TAIL_BYTES = 4096
BACK_OFF_FIRST_S = 0.5
BACK_OFF_MAX_S = 30.0
"""An engine with a wrong flag fails in seconds: more tries than this would only fill its log."""


class Guarding:
    """The guard's end of the pipe here: tell it what runs. Use as a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> "Guarding":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def began(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def ended(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        # Without a guard a crash may leave orphans; that is no reason to crash.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


class Child:
    """A process that may be started again after its end. `name` is what its log file and messages call it."""

    def __init__(self, name: str, log: Path, guarding: Guarding) -> None:
        self.name = name
        self.log = log
        self._guarding = guarding
        self._process: asyncio.subprocess.Process | None = None
        self._group: int | None = None

    @property
    def pid(self) -> int | None:
        return self._group

    async def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """From start to end; the exit code. Raises OSError where the program cannot be started. Cancelled: it is killed.
        `environment` is added to this process's own."""
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=None if environment is None else {**os.environ, **environment},
            )  # fmt: skip
        self._process, self._group = process, process.pid
        self._guarding.began(process.pid)
        try:
            return await process.wait()
        finally:
            # Workers that outlived their parent hold the accelerator; and a cancelled task must not leave its process.
            guard.send(process.pid, signal.SIGKILL)
            if process.returncode is None:
                await asyncio.shield(process.wait())
            self._guarding.ended(process.pid)
            self._process = self._group = None

    def terminate(self) -> None:
        """SIGTERM to the process itself; what it started is its own to end."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._group is not None:
            guard.send(self._group, signal.SIGKILL)

    def last_words(self, lines: int = 1) -> str:
        """The end of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def back_off_s(failures: int) -> float:
    """Seconds before the next start after so many failures in a row."""
    return float(min(BACK_OFF_FIRST_S * 2 ** min(max(failures - 1, 0), 16), BACK_OFF_MAX_S))
