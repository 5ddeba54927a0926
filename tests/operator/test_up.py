"""Stories of `multislo up`: real processes, a real router, emulated engines."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Protocol
from urllib.request import Request, urlopen

import pytest

from multislo_api.fleet import TOKEN_VARIABLE
from multislo_api.manifest import load_manifest
from multislo_operator.local import up as local
from multislo_operator.local.engines import multislo
from multislo_operator.local.journal import FILE_NAME, instance_seconds
from multislo_operator.local.ports import ROUTER_PORTS, Ports
from multislo_perf.profile import load_profile


class Running(Protocol):
    folder: Path
    process: subprocess.Popen[bytes]

    def events(self, named: str | None = None) -> list[dict[str, Any]]: ...
    @property
    def stderr(self) -> str: ...
    def url(self, line: str) -> str: ...
    def call(self, line: str, path: str, body: dict[str, Any] | None = None) -> Any: ...
    def ready(self, count: int = 1) -> None: ...
    def left(self) -> dict[int, str]: ...
    def pid_of(self, words: str) -> int: ...
    def interrupt(self) -> None: ...
    def exit_code(self) -> int: ...


Up = Callable[..., Running]
Wait = Callable[..., Any]
Manifest = dict[str, Any]


def a_request(tokens: int, stream: bool = False, words: int = 5) -> dict[str, Any]:
    return {"model": "llama", "prompt": "tok " * words, "max_tokens": tokens, "ignore_eos": True, "stream": stream}


def test_up_serves_a_request_and_ctrl_c_leaves_nothing_behind(up: Up, manifest: Manifest, patience: Wait) -> None:
    began = monotonic()
    fleet = up(manifest)
    fleet.ready()
    answer = fleet.call("OpenAI API", "/v1/completions", a_request(5))
    assert answer["usage"]["completion_tokens"] == 5
    fleet.interrupt()
    assert fleet.exit_code() == 0
    lasted_s = monotonic() - began
    assert fleet.left() == {}
    logs = fleet.folder / "logs"
    assert {"router.log", "engine-1.log", FILE_NAME} <= {file.name for file in logs.iterdir()}
    (start,) = fleet.events("start")
    assert start["tier"] == "realtime"
    assert start["reason"]
    assert 0.0 < instance_seconds(logs / FILE_NAME) <= lasted_s  # of one instance


def test_a_killed_engine_is_started_again(up: Up, manifest: Manifest, patience: Wait) -> None:
    fleet = up(manifest)
    fleet.ready()
    os.kill(fleet.pid_of("emulate"), signal.SIGKILL)
    (ended,) = patience(lambda: fleet.events("ended"), "the end to be noticed")
    assert ended["code"] == -signal.SIGKILL
    patience(lambda: len(fleet.events("ready")) == 2, "the engine to be ready again")
    fleet.ready()
    assert fleet.call("OpenAI API", "/v1/completions", a_request(2)) is not None
    assert len(fleet.events("start")) == 1


def test_a_killed_router_is_started_again_and_told_the_fleet(up: Up, manifest: Manifest, patience: Wait) -> None:
    fleet = up(manifest)
    fleet.ready()
    old = fleet.pid_of("multislo router")
    os.kill(old, signal.SIGKILL)
    patience(lambda: fleet.events("router_ended"), "the end to be noticed")
    patience(lambda: fleet.call("OpenAI API", "/v1/completions", a_request(2)), "an answer")
    assert len(fleet.events("start")) == 1


# A server that is none of ours, with a worker: what a real engine looks like from outside.
FOREIGN = """
import http.server, subprocess, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def with_foreign_engine(manifest: Manifest, folder: Path, program: str = FOREIGN) -> Manifest:
    script = folder / "engine.py"
    script.write_text(program)
    manifest["spec"]["engine"] = {"type": "VLLM", "command": [sys.executable, str(script)]}
    return manifest


def test_a_crash_of_up_leaves_no_orphan_not_even_a_stubborn_worker(
    up: Up, manifest: Manifest, patience: Wait, tmp_path: Path
) -> None:
    fleet = up(with_foreign_engine(manifest, tmp_path))
    fleet.ready()
    assert any("time.sleep(600)" in command for command in fleet.left().values())
    fleet.process.kill()
    patience(lambda: not fleet.left(), f"everything to end: {fleet.left()}")


def test_stopping_an_engine_ends_its_workers_too(up: Up, manifest: Manifest, tmp_path: Path) -> None:
    fleet = up(with_foreign_engine(manifest, tmp_path))
    fleet.ready()
    fleet.interrupt()
    assert fleet.exit_code() == 0
    assert fleet.left() == {}


class Stream(threading.Thread):
    """A client that reads a stream to its end."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        super().__init__()
        self.text = b""
        self.error: str | None = None
        self.begun = threading.Event()
        self._request = Request(
            url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        self.start()

    def run(self) -> None:
        try:
            with urlopen(self._request, timeout=60) as answer:
                for line in answer:
                    self.text += line
                    self.begun.set()
        except OSError as error:
            self.error = repr(error)
            self.begun.set()


def test_ctrl_c_lets_a_stream_finish(up: Up, manifest: Manifest) -> None:
    fleet = up(manifest)
    fleet.ready()
    stream = Stream(fleet.url("OpenAI API"), a_request(150, stream=True))
    assert stream.begun.wait(30)
    fleet.interrupt()
    assert fleet.exit_code() == 0
    stream.join()
    assert stream.error is None
    assert b"[DONE]" in stream.text
    assert fleet.left() == {}


def test_a_second_ctrl_c_stops_at_once(up: Up, manifest: Manifest, patience: Wait) -> None:
    fleet = up(manifest)
    fleet.ready()
    stream = Stream(fleet.url("OpenAI API"), a_request(15_000, stream=True))
    assert stream.begun.wait(30)
    fleet.interrupt()
    patience(lambda: fleet.events("stopping"), "the first one to be heard")
    time.sleep(0.5)
    assert fleet.process.poll() is None
    fleet.interrupt()
    assert fleet.exit_code() == 130
    assert fleet.left() == {}
    stream.join()


@contextmanager
def load(url: str) -> Iterator[None]:
    """Twelve clients, each with one long prompt after the other."""
    done = threading.Event()

    def press() -> None:
        while not done.is_set():
            request = Request(url + "/v1/completions", json.dumps(a_request(40, words=3000)).encode())
            try:
                with urlopen(request, timeout=60) as answer:
                    answer.read()
            except OSError:
                time.sleep(0.1)

    clients = [threading.Thread(target=press) for _ in range(12)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        done.set()
        for client in clients:
            client.join()


def test_load_starts_engines_and_its_end_drains_them(up: Up, manifest: Manifest, patience: Wait) -> None:
    fleet = up(manifest)
    fleet.ready()
    with load(fleet.url("OpenAI API")):
        patience(lambda: len(fleet.events("start")) >= 3, f"more engines: {fleet.events()[-3:]}")
    fullest = max(sum(sample["instances"].values()) for sample in fleet.events("fleet"))
    assert fullest == 3, "the budget"
    patience(lambda: fleet.events("drain"), "the load to be gone")
    patience(lambda: fleet.events("stopped"), "a drained engine to be stopped")
    fleet.interrupt()
    assert fleet.exit_code() == 0


# The first one is an emulated engine; whoever comes later finds its mark, and does not come up.
ONLY_THE_FIRST = """
import os, pathlib, sys, time
try:
    pathlib.Path(__file__).with_suffix(".taken").touch(exist_ok=False)
except FileExistsError:
    {otherwise}
port = sys.argv[sys.argv.index("--port") + 1]
os.execv({multislo!r}, [{multislo!r}, "emulate", "--profile", {profile!r}, "--model", "llama", "--port", port])
"""


@pytest.mark.parametrize("otherwise", ["sys.exit('error: no accelerator')", "time.sleep(600)"])
def test_the_engine_that_serves_is_kept_and_what_never_came_up_goes(
    otherwise: str, up: Up, manifest: Manifest, patience: Wait, tmp_path: Path
) -> None:
    (program,) = multislo()
    script = ONLY_THE_FIRST.format(otherwise=otherwise, multislo=program, profile=manifest["spec"]["profile"])
    manifest["spec"]["tiers"][1]["instances"]["max"] = 1
    fleet = up(with_foreign_engine(manifest, tmp_path, script))
    fleet.ready()
    with load(fleet.url("OpenAI API")):
        patience(lambda: len(fleet.events("start")) >= 2, f"more engines: {fleet.events()[-3:]}")

    def only_one_is_left() -> bool:
        instances = fleet.call("live page", "/fleet")["instances"]
        return [(one["id"], one["state"]) for one in instances] == [("engine-1", "ready")]

    patience(only_one_is_left, f"the others to go: {fleet.events()[-3:]}")
    assert not fleet.events("drain")
    assert fleet.call("OpenAI API", "/v1/completions", a_request(2)) is not None
    fleet.interrupt()
    assert fleet.exit_code() == 0


def test_pinned_counts_are_kept_whatever_the_schedule_says(up: Up, manifest: Manifest) -> None:
    manifest["spec"]["scaling"]["schedule"] = [{"cron": "* * * * *", "duration": "10m", "tier": "realtime", "min": 2}]
    fleet = up(manifest, "--instances", "batch=2")
    fleet.ready(3)
    assert sorted(event["tier"] for event in fleet.events("start")) == ["batch", "batch", "realtime"]


def test_a_router_that_cannot_start_ends_the_fleet_with_its_words(up: Up, manifest: Manifest) -> None:
    fleet = up(manifest, "--host", "192.0.2.1")  # no machine's
    assert fleet.exit_code() == 1
    (failed,) = fleet.events("failed")
    assert "cannot listen" in failed["text"]
    assert fleet.left() == {}


def test_a_file_that_the_router_cannot_read_is_told_before_an_engine_starts(
    up: Up, manifest: Manifest, tmp_path: Path
) -> None:
    keys, tokenizer = tmp_path / "keys", tmp_path / "tokenizer.json"
    keys.write_text("# nobody\n")
    tokenizer.write_text("{}")
    with_tokenizer = {**manifest, "spec": {**manifest["spec"], "model": {"name": "m", "tokenizer": str(tokenizer)}}}

    for given, options, named in (
        (manifest, ("--api-key-file", str(keys)), keys),
        (manifest, ("--api-key-file", str(tmp_path / "nowhere")), "nowhere"),
        (with_tokenizer, (), f'spec.model.tokenizer: "{tokenizer}" must be a tokenizer.json'),
    ):
        fleet = up(given, *options)
        assert fleet.exit_code() == 1
        (failed,) = fleet.events("failed")
        assert str(named) in failed["text"]
        assert not fleet.events("start")
        assert fleet.left() == {}


@contextmanager
def a_router(path: Path, port: int, environment: dict[str, str]) -> Iterator[str]:
    """A router that none of the fleets here has started; the URL of its admin listener."""
    command = [*multislo(), "router", "-f", str(path), "--port", "0", "--admin-port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **environment})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("environment", [{}, {TOKEN_VARIABLE: "another"}])
def test_a_router_of_somebody_else_is_never_taken_over(
    environment: dict[str, str], manifest: Manifest, patience: Wait, tmp_path: Path
) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(json.dumps(manifest))
    ports = Ports(ROUTER_PORTS, os.getpid())
    port, admin_port = ports.take(), ports.take()

    def generation() -> int | None:
        try:
            with urlopen(f"{theirs}/fleet", timeout=10) as answer:
                return int(json.load(answer)["generation"])
        except OSError:
            return None

    with a_router(path, admin_port, environment) as theirs:
        patience(lambda: generation() is not None, "the other router")
        # Past the check of the command line, as when both start at the same moment.
        said: list[str] = []
        settings = local.UpSettings(path, tmp_path, port, admin_port, say=said.append)
        code = asyncio.run(local.Up(load_manifest(path), load_profile(manifest["spec"]["profile"]), settings).run())
        assert code == 1
        assert any("cannot listen" in line for line in said), said
        assert any("another router answers" in line for line in said), said
        assert generation() == 0


def test_an_engine_that_does_not_come_up_is_not_added_to(
    up: Up, manifest: Manifest, patience: Wait, tmp_path: Path
) -> None:
    wrong = "import sys; sys.exit('error: no such flag')"
    fleet = up(with_foreign_engine(manifest, tmp_path, wrong))
    patience(lambda: [e for e in fleet.events("hold") if e["cause"] == "InstancesNotComingUp"], "it to be said")
    assert len(fleet.events("start")) == 1
    assert fleet.events("ended")[0]["last_words"] == "error: no such flag"
    fleet.interrupt()
    assert fleet.exit_code() == 0
