"""What the router is told, from a manifest."""

from pathlib import Path

import pytest

from multislo_api.manifest import ApiKeys, MultiSLOServing, parse_manifest
from multislo_perf.profile import ProfileInvalid, load_profile
from multislo_perf.sizing import batch_tokens
from multislo_router.core.config import Overload, Placement
from multislo_router.core.events import Scheduler
from multislo_router.core.machine import RouterCore
from multislo_router.from_manifest import Unusable, api_key_of, core_config, profile_of, read_api_key, shell_settings

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
    assert shell_settings(manifest(), None).served_names == ("llama",)
    unnamed = manifest(TEXT.replace("servedNames: [llama], ", ""))
    assert shell_settings(unnamed, None).served_names == ("org/llama",)


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    monkeypatch.setenv("ROUTER_KEYS", "three")
    assert api_key_of(None) is None
    assert api_key_of(ApiKeys(file=str(file))) == b"one\ntwo\n"
    assert api_key_of(ApiKeys(env="ROUTER_KEYS")) == b"three"


def test_keys_that_cannot_be_had_are_named_with_the_field_that_wants_them(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text(" \n")
    with pytest.raises(Unusable, match=r"spec\.router\.apiKeys\.file: .* is empty"):
        api_key_of(ApiKeys(file=str(empty)))
    with pytest.raises(Unusable, match=r"--api-key-file: .* cannot be read: Is a directory"):
        read_api_key(tmp_path, "--api-key-file")
    with pytest.raises(Unusable, match=r"spec\.router\.apiKeys\.env: the variable NOT_SET_ANYWHERE must be set"):
        api_key_of(ApiKeys(env="NOT_SET_ANYWHERE"))
    with pytest.raises(Unusable, match=r"spec\.router\.apiKeys\.secret: .* takes --api-key-file"):
        api_key_of(ApiKeys(secret="keys"))


def test_a_profile_in_a_cluster_cannot_be_read_here() -> None:
    assert profile_of(manifest().spec) == PROFILE
    text = TEXT.replace("profile: llama-3.1-8b-h200-tp1", "profile: {configMap: measured}")
    with pytest.raises(Unusable, match=r"spec\.profile\.configMap: \"measured\" is in a cluster"):
        profile_of(manifest(text).spec)
    with pytest.raises(ProfileInvalid, match="no-such-profile"):
        profile_of(manifest(TEXT.replace("llama-3.1-8b-h200-tp1", "no-such-profile")).spec)
