"""What the router is told, from a manifest."""

from pathlib import Path

import pytest

from multislo_api.manifest import ApiKeys, MultiSLOServing, parse_manifest
from multislo_perf.profile import ProfileInvalid, load_profile
from multislo_perf.sizing import batch_tokens
from multislo_router.core.config import Overload, Placement
from multislo_router.core.events import Scheduler
from multislo_router.core.machine import RouterCore
from multislo_router.from_manifest import Unusable, api_keys_of, core_config, profile_of, read_api_keys, shell_settings
from multislo_router.shell.keys import keys_in

PROFILE = load_profile("llama-3.1-8b-h200-tp1")
TEXT = """
apiVersion: multislo.dev/v1alpha1
kind: MultiSLOServing
metadata: {name: llama}
spec:
  model: {name: org/llama, servedNames: [llama], maxLength: 8192}
  profile: llama-3.1-8b-h200-tp1
  engine: {scheduler: SLOAware, args: [--max-num-seqs=64, --max-num-seqs, "128", --swap-space, "4"]}
  tiers:
    - {name: batch, slo: {ttft: 2s, tpot: 100ms}, overload: BestEffort}
    - {name: realtime, slo: {ttft: 300ms, tpot: 20ms}, overload: Reject}
  defaultTier: batch
  placement: Spread
  scaling: {acceleratorsMax: 4}
"""


def manifest(text: str = TEXT) -> MultiSLOServing:
    return parse_manifest(text)


def test_the_core_is_told_the_manifests_tiers_with_their_token_budgets() -> None:
    config = core_config(manifest(), PROFILE)
    assert [(t.name, t.ttft_s, t.tpot_s, t.overload) for t in config.tiers] == [
        ("batch", 2.0, 0.1, Overload.BEST_EFFORT),
        ("realtime", 0.3, 0.02, Overload.REJECT),
    ]
    assert [t.batch_tokens for t in config.tiers] == [batch_tokens(PROFILE.latency, s) for s in (0.1, 0.02)]
    assert config.default_tier == "batch"
    assert config.placement is Placement.SPREAD
    assert config.length_max == 8192
    assert config.latency == PROFILE.latency
    RouterCore(config).check()


def test_the_engines_limits_are_the_profiles_and_the_users_own_flags() -> None:
    engine = core_config(manifest(), PROFILE).engine
    assert engine.kv_tokens_max == PROFILE.kv_tokens_max
    assert engine.scheduler is Scheduler.SLO_AWARE
    assert engine.seqs_max == 128
    stock = core_config(manifest(TEXT.replace("SLOAware, args: [--max", "Stock, args: [--no-max")), PROFILE).engine
    assert stock.scheduler is Scheduler.FCFS
    assert core_config(manifest(TEXT.replace("SLOAware", "Priority")), PROFILE).engine.scheduler is Scheduler.PRIORITY


def test_clients_may_ask_for_the_names_that_the_engines_answer_to() -> None:
    assert shell_settings(manifest()).served_names == ("llama",)
    unnamed = manifest(TEXT.replace("servedNames: [llama], ", ""))
    assert shell_settings(unnamed).served_names == ("org/llama",)


def test_the_doors_of_the_data_port_are_the_manifest_s() -> None:
    door = """
  router:
    bodyMaxMib: 100
    cors: {origins: ["https://App.example.com:443", "http://localhost:3000"]}
    paths: [{path: /version, methods: [GET]}, {path: /v1/thing}]
"""
    settings = shell_settings(manifest(TEXT + door))

    assert settings.body_max_bytes == 100 << 20
    assert settings.cors_origins == ("https://app.example.com", "http://localhost:3000")
    assert settings.extra_paths == (("/version", ("GET",)), ("/v1/thing", ("POST",)))
    closed = shell_settings(manifest())
    assert (closed.body_max_bytes, closed.cors_origins, closed.extra_paths) == (32 << 20, (), ())


def test_openai_s_service_tiers_mean_tiers() -> None:
    assert shell_settings(manifest()).service_tiers == {
        **dict.fromkeys(("auto", "default", "scale", "standard_only", "flex"), "batch"),
        "priority": "realtime",
    }
    mapped = shell_settings(manifest(TEXT + "  serviceTiers: {auto: realtime, priority: batch}"))
    assert (mapped.service_tiers["auto"], mapped.service_tiers["priority"]) == ("realtime", "batch")
    named = manifest(TEXT.replace("realtime", "flex"))
    assert (shell_settings(named).service_tiers["flex"], shell_settings(named).service_tiers["priority"]) == (
        "flex",
        "flex",
    )


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    monkeypatch.setenv("ROUTER_KEYS", "three")
    assert api_keys_of(None) == ()
    assert api_keys_of(ApiKeys(file=str(file))) == (b"one", b"two")
    assert api_keys_of(ApiKeys(env="ROUTER_KEYS")) == (b"three",)


def test_keys_that_cannot_be_had_are_named_with_the_field_that_wants_them(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text(" \n")
    with pytest.raises(Unusable, match=r"spec\.router\.apiKeys\.file: .* it must hold at least one"):
        api_keys_of(ApiKeys(file=str(empty)))
    with pytest.raises(Unusable, match=r"--api-key-file: .* cannot be read: Is a directory"):
        read_api_keys(tmp_path, "--api-key-file")
    with pytest.raises(Unusable, match=r"spec\.router\.apiKeys\.env: the variable NOT_SET_ANYWHERE is not set"):
        api_keys_of(ApiKeys(env="NOT_SET_ANYWHERE"))
    with pytest.raises(Unusable, match=r"spec\.router\.apiKeys\.secret: .* takes --api-key-file"):
        api_keys_of(ApiKeys(secret="keys"))


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (b"# team a\nsk-a\n\n   # team b\n\tsk-b \n", (b"sk-a", b"sk-b")),
        (b"sk-a\r\n#x\r\nsk-b\r\n", (b"sk-a", b"sk-b")),
        (b"\xef\xbb\xbf# a BOM before the comment\nsk-a", (b"sk-a",)),
        (b"\xef\xbb\xbfsk-a#1", (b"sk-a#1",)),
        (b"sk-a\rsk-b", (b"sk-a", b"sk-b")),
    ],
)
def test_a_key_file_has_one_key_a_line_and_comments_are_none(content: bytes, keys: tuple[bytes, ...]) -> None:
    assert keys_in(content) == keys


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "there is no key in it"),
        (b"\n \t\r\n", "there is no key in it"),
        (b"# only\n# comments\n", "there is no key in it"),
        (b"\xef\xbb\xbf", "there is no key in it"),
        (b"sk-a\nteam b\n", "line 2 must be one key"),
        (b"sk-a # team a\n", "line 1 must be one key"),
        (b"sk-\xc3\xa4\n", "line 1 must be one key"),
        ("sk-a\n".encode("utf-16"), "line 1 must be one key"),
        (b"sk-a\x00\n", "line 1 must be one key"),
        (b"a" * 513, "line 1 must be one key: 1 to 512 visible ASCII characters"),
    ],
)
def test_a_key_file_that_is_none_is_refused_without_showing_a_key(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refused:
        keys_in(content)

    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize("value", ["", "  ", "# key", "two keys"])
def test_a_variable_without_a_key_is_refused_by_its_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_KEYS", value)

    with pytest.raises(Unusable, match=r"spec\.router\.apiKeys\.env: ROUTER_KEYS: "):
        api_keys_of(ApiKeys(env="ROUTER_KEYS"))


def test_a_profile_in_a_cluster_cannot_be_read_here() -> None:
    assert profile_of(manifest().spec) == PROFILE
    text = TEXT.replace("profile: llama-3.1-8b-h200-tp1", "profile: {configMap: measured}")
    with pytest.raises(Unusable, match=r"spec\.profile\.configMap: \"measured\" is in a cluster"):
        profile_of(manifest(text).spec)
    with pytest.raises(ProfileInvalid, match="no-such-profile"):
        profile_of(manifest(TEXT.replace("llama-3.1-8b-h200-tp1", "no-such-profile")).spec)
