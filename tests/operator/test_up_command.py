"""The command lines of `up` and `top`: what they refuse, warn of and print."""

import io
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console

from multislo_api.fleet import FleetSnapshot, InstanceView, LatencyView, TierView
from multislo_operator.cli import top, up
from multislo_operator.local.top import frame

Manifest = dict[str, Any]


def ran(folder: Path, manifest: Manifest, *options: str) -> Result:
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return CliRunner().invoke(up, ["-f", str(path), *options])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--instances", "nobody=2"], '"nobody=2" must be TIER=N with one of realtime, batch and a whole number'),
        (["--instances", "batch=many"], '"batch=many" must be TIER=N'),
        (["--instances", "batch=30"], "31 instances in all must be at most the budget's 3"),
        (["--log-dir", "/proc/nowhere"], "cannot be made"),
    ],
)
def test_wrong_use_is_told_with_what_is_legal(
    options: list[str], words: str, tmp_path: Path, manifest: Manifest
) -> None:
    result = ran(tmp_path, manifest, "--port", "0", "--admin-port", "0", *options)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"profile": "no-such-profile"}, "no-such-profile"),
        ({"profile": {"configMap": "mine"}}, "is in a cluster"),
        ({"engine": {"type": "VLLM", "command": ["no-such-program"]}}, 'the program "no-such-program" is not on PATH'),
    ],
)
def test_what_cannot_be_had_on_this_machine_is_told_before_anything_starts(
    change: Manifest, words: str, tmp_path: Path, manifest: Manifest
) -> None:
    manifest["spec"] |= change
    result = ran(tmp_path, manifest)
    assert result.exit_code == 2
    assert words in result.stderr


def test_an_slo_that_an_idle_instance_misses_is_a_warning_with_both_figures(
    up: Callable[..., Any], manifest: Manifest, patience: Callable[..., Any]
) -> None:
    manifest["spec"]["tiers"][0]["slo"]["tpot"] = "3ms"
    fleet = up(manifest)
    patience(lambda: "warning" in fleet.stderr, "the warning")
    assert "warning: tier realtime: tpot 3 ms cannot be met: an idle instance of profile" in fleet.stderr
    fleet.interrupt()
    fleet.exit_code()


def test_top_says_so_when_no_router_can_be_reached() -> None:
    result = CliRunner().invoke(top, ["--once", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "error: no router can be reached: 127.0.0.1:9: connection refused" in result.stderr


@pytest.mark.parametrize(("option", "field"), [("--port", "port"), ("--admin-port", "adminPort")])
@pytest.mark.parametrize("by_option", [True, False])
def test_a_taken_port_is_told_before_anything_starts(
    option: str, field: str, by_option: bool, tmp_path: Path, manifest: Manifest
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"--port": "0", "--admin-port": "0"}
        if by_option:
            ports[option] = str(port)
        else:
            del ports[option]
            manifest["spec"]["router"] = {field: port}
        options = [part for pair in ports.items() for part in pair]
        result = ran(tmp_path, manifest, *options, "--log-dir", str(tmp_path / "logs"))
    assert result.exit_code == 1
    assert (
        f"error: port {port} of 127.0.0.1 is in use; choose another by {option} or spec.router.{field}" in result.stderr
    )
    assert not (tmp_path / "logs").exists()


def test_top_takes_the_port_from_a_manifest(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest | {"spec": manifest["spec"] | {"router": {"adminPort": 9}}}))
    result = CliRunner().invoke(top, ["--once", "-f", str(path)])
    assert result.exit_code == 1
    assert "127.0.0.1:9: connection refused" in result.stderr
    both = CliRunner().invoke(top, ["--once", "-f", str(path), "--url", "http://127.0.0.1:9"])
    assert both.exit_code == 2


def test_top_wants_a_url() -> None:
    assert CliRunner().invoke(top, ["--url", "localhost:9090"]).exit_code == 2


def test_top_prints_one_picture_of_a_running_fleet(up: Callable[..., Any], manifest: Manifest) -> None:
    fleet = up(manifest)
    fleet.ready()
    result = CliRunner().invoke(top, ["--once", "--url", fleet.url("live page")])
    assert result.exit_code == 0
    assert "realtime" in result.stdout
    assert "engine-1" in result.stdout


def a_tier(name: str, tpot_s: float, **changes: Any) -> TierView:
    figures: dict[str, Any] = {
        "ttft_s": 0.5, "pending": 0, "pending_oldest_s": 0.0, "pending_in_time": 0,
        "pending_in_time_oldest_s": 0.0, "given_up": 0, "out_of_reach": 0, "in_flight": 3, "arrival_rate": 2.0, "work_rate": 0.5,
        "work_rate_trend": 0.0, "requests_met": 9, "requests_missed": 1, "tokens_met": 90, "tokens_missed": 1, "refused": 0,
        "attainment": 0.995, "ttft": LatencyView(p50_s=0.1, p99_s=0.7), "tpot": LatencyView(),
    }  # fmt: skip
    return TierView(name=name, tpot_s=tpot_s, **(figures | changes))


def an_instance(id: str, tier: str | None, load: float, state: str = "ready") -> InstanceView:
    document = {
        "id": id, "url": "http://127.0.0.1:1", "tier": tier, "state": state, "load": load, "load_mean": load, "requests": 2,
        "prefills": 0, "decodes": 2, "kv_tokens": 500, "kv_tokens_reported": None, "kv_tokens_max": 1000,
        "iteration_predicted_s": 0.01, "calibration": 1.2, "empty_s": 0.0,
    }  # fmt: skip
    return InstanceView.model_validate_json(json.dumps(document))


def test_a_frame_shows_tiers_by_tightness_and_the_gradient_by_falling_load() -> None:
    snapshot = FleetSnapshot(
        at=0.0, uptime_s=125.0, model="llama", placement="Pack", generation=3,
        tiers=[a_tier("loose", 0.1, pending=4, pending_oldest_s=1.5), a_tier("tight", 0.02)],
        instances=[
            an_instance("a", "loose", 0.2), an_instance("b", "tight", 0.3), an_instance("c", "tight", 1.1),
            an_instance("d", None, 0.0), an_instance("e", "loose", 0.9, "draining"),
        ],
    )  # fmt: skip
    screen = io.StringIO()
    Console(width=160, file=screen).print(frame(snapshot, None, "no answer for 3 s"))
    text = screen.getvalue()
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if line[:1] in "abcde" and line[1:2] == " "] == ["c", "b", "e", "a", "d"]
    assert text.index("tight") < text.index("loose")
    for words in ("no answer for 3 s", "4 (1.5 s)", "99.5%", "100/700 ms", "draining", "warm", "KV 50%", "1.20 x"):
        assert words in text


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_in_a_narrow_terminal_columns_go_and_names_stay_whole(width: int) -> None:
    waiting = {"pending": 12, "pending_oldest_s": 1.5, "refused": 120, "tpot": LatencyView(p50_s=0.02, p99_s=12.0)}
    names = ("interactive", "standard", "realtime", "batch")
    snapshot = FleetSnapshot(
        at=0.0, uptime_s=125.0, model="llama", placement="Pack", generation=3,
        tiers=[a_tier(name, 0.02 + index / 50, **waiting) for index, name in enumerate(names)],
        instances=[an_instance(f"engine-{index}", name, 0.7, "draining") for index, name in enumerate(names)],
    )  # fmt: skip
    screen = io.StringIO()
    Console(width=width, file=screen).print(frame(snapshot, width=width))
    lines = screen.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    words = set(screen.getvalue().split())
    assert {*names, "engine-0", "engine-3", "tier", "attained", "p50/p99", "0.70", "draining,"} <= words
    assert ("work" in words) == (width == 160)
