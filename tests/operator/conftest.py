"""`multislo up` as a process, its events, and what is left of it afterwards."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import yaml

PATIENCE_S = 60.0
MARK = "MULTISLO_TEST_MARK"

MANIFEST: dict[str, Any] = {
    "apiVersion": "multislo.dev/v1alpha1",
    "kind": "MultiSLOServing",
    "metadata": {"name": "test"},
    "spec": {
        "model": {"name": "llama"},
        "profile": "llama-3.1-8b-h100-third-tp1",
        "engine": {"type": "Emulated", "emulation": {"startup": "0s"}},
        "tiers": [
            {"name": "realtime", "slo": {"ttft": "300ms", "tpot": "25ms"}, "instances": {"min": 1, "max": 2}},
            {"name": "batch", "slo": {"ttft": "1s", "tpot": "100ms"}, "instances": {"min": 0, "max": 3}},
        ],
        "scaling": {
            "acceleratorsMax": 3,
            "warmPool": {"min": 0, "max": 0},
            "scaleDown": {"stabilization": "3s", "drainTimeout": "30s"},
        },
    },
}


def wait_for(what: Callable[[], Any], named: str, patience_s: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {patience_s:g} s in vain for {named}")


class Running:
    """A `multislo up --json`. Everything that it starts inherits a mark in its environment, and can be found by that."""

    def __init__(self, folder: Path, manifest: dict[str, Any], *options: str) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        path = folder / "manifest.yaml"
        path.write_text(yaml.safe_dump(manifest))
        self._out = (folder / "stdout").open("wb")
        self._err = (folder / "stderr").open("wb")
        self.process = subprocess.Popen(
            [
                Path(sys.executable).with_name("multislo"),
                *("up", "-f", path, "--port", "0", "--admin-port", "0", "--json"),
                *("--log-dir", folder / "logs", *options),
            ],
            env={**os.environ, MARK: self.mark},
            stdout=self._out,
            stderr=self._err,
        )

    def events(self, named: str | None = None) -> list[dict[str, Any]]:
        lines = (self.folder / "stdout").read_text().splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in events if named in (None, event["event"])]

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def url(self, line: str) -> str:
        """The one that stands behind "OpenAI API" or "live page"."""
        found = wait_for(lambda: re.search(rf"{line} +(http://[0-9.]+:\d+)", self.stderr), line)
        return found[1]

    def call(self, line: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """JSON or text of an answer; None where nobody answers, or with an error."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url(line) + path, data, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=PATIENCE_S) as answer:
                text = answer.read().decode()
        except (URLError, OSError):
            return None
        return json.loads(text) if text.startswith("{") else text

    def ready(self, count: int = 1) -> None:
        """Wait until the router has so many ready instances."""

        def enough() -> bool:
            assert self.process.poll() is None, f"it has ended: {self.events()[-3:]} {self.stderr}"
            fleet = self.call("live page", "/fleet")
            return fleet is not None and sum(i["state"] == "ready" for i in fleet["instances"]) >= count

        wait_for(enough, f"{count} ready instances; stderr: {self.stderr}")

    def left(self) -> dict[int, str]:
        """Processes that carry the mark: pid -> command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if self.mark.encode() in (entry / "environ").read_bytes():
                        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                        if command:
                            found[int(entry.name)] = command
        return found

    def pid_of(self, words: str) -> int:
        return next(pid for pid, command in self.left().items() if words in command)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._out.close()
        self._err.close()


@pytest.fixture
def manifest() -> dict[str, Any]:
    """A copy to change."""
    return json.loads(json.dumps(MANIFEST))  # type: ignore[no-any-return]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start `multislo up` with a manifest and options; killed at the end if it still runs."""
    started: list[Running] = []

    def start(manifest: dict[str, Any], *options: str) -> Running:
        folder = tmp_path / f"up-{len(started)}"  # its own: two at once would write into one file
        folder.mkdir()
        started.append(Running(folder, manifest, *options))
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.fixture
def patience() -> Callable[..., Any]:
    return wait_for
