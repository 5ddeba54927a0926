"""The flags that engines are started with."""

import json
from typing import Any

import pytest

from multislo_api.manifest import MultiSLOServing, manifest_from
from multislo_engine.vllm.settings import settings_from
from multislo_operator.engine_flags import emulate_args, fighting_flags, vllm_args
from multislo_perf.profile import load_profile

PROFILE = load_profile("llama-3.1-8b-h200-tp1")


def fleet(**engine: Any) -> MultiSLOServing:
    spec = {
        "model": {"name": "org/llama", "servedNames": ["llama"]},
        "profile": PROFILE.name,
        "engine": engine,
        "tiers": [{"name": "batch", "slo": {"ttft": "2s", "tpot": "100ms"}}],
        "scaling": {"acceleratorsMax": 1},
    }
    metadata = {"name": "llama"}
    return manifest_from(
        {"apiVersion": "multislo.dev/v1alpha1", "kind": "MultiSLOServing", "metadata": metadata, "spec": spec}
    )


ADAPTERS = [{"name": "sql", "path": "/adapters/sql"}, {"name": "chat", "path": "org/chat-lora", "rank": 24}]


@pytest.mark.parametrize(("rank", "reserved"), [(None, "16"), (1, "16"), (17, "32"), (300, "320"), (512, "512")])
def test_vllm_loads_all_adapters_and_holds_all_of_them_in_a_batch(rank: int | None, reserved: str) -> None:
    adapters = [ADAPTERS[0], ADAPTERS[0] | {"name": "b"} | ({"rank": rank} if rank else {})]
    args = vllm_args(fleet(adapters=adapters), PROFILE, "batch", {})

    start = args.index("--enable-lora")
    assert args[start : start + 5] == ("--enable-lora", "--max-loras", "2", "--max-lora-rank", reserved)
    assert args[start + 5 : start + 8] == ("--lora-modules", "sql=/adapters/sql", "b=/adapters/sql")
    assert args[start + 8].startswith("--")


def test_an_slo_aware_vllm_gets_the_plug_in_with_the_default_tiers_slo_and_the_profiles_law() -> None:
    args = vllm_args(fleet(scheduler="SLOAware"), PROFILE, "batch", {})

    assert args[args.index("--scheduler-cls") + 1] == "multislo_engine.vllm.SLOScheduler"
    assert "--no-async-scheduling" in args
    settings = settings_from(json.loads(args[args.index("--additional-config") + 1]))
    assert (settings.ttft_s, settings.tpot_s) == (2.0, 0.1)
    assert settings.latency == PROFILE.latency
    # One for all homes: vLLM's compile cache depends on it.
    assert args[args.index("--additional-config") + 1] in vllm_args(fleet(scheduler="SLOAware"), PROFILE, None, {})
    assert "--scheduler-cls" not in vllm_args(fleet(), PROFILE, "batch", {})
    [line] = fighting_flags(fleet(scheduler="SLOAware", args=["--scheduler-cls=other.Scheduler"]), PROFILE, {})
    assert "runs with other.Scheduler" in line


def test_without_adapters_there_are_no_flags_for_them() -> None:
    assert not [arg for arg in vllm_args(fleet(), PROFILE, "batch", {}) if "lora" in arg]


def test_emulated_engines_get_the_adapters_too() -> None:
    args = emulate_args(fleet(type="Emulated", adapters=ADAPTERS), PROFILE, "batch", 0, PROFILE.name, {})

    given = [args[index + 1] for index, arg in enumerate(args) if arg == "--lora-modules"]
    assert given == ["sql=/adapters/sql", "chat=org/chat-lora"]


def test_adapters_that_only_the_engines_know_are_told() -> None:
    [line] = fighting_flags(fleet(args=["--lora-modules", "x=y"], adapters=ADAPTERS), PROFILE, {})

    assert line == "--lora-modules: the routers know sql chat (spec.engine.adapters), engines run with spec.engine.args"
