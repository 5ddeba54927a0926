"""Which SLO a request gets: by headers, by `service_tier`, by default."""

import time
from typing import Any

import pytest

SERVICE_TIERS = {"auto": "interactive", "default": "interactive", "flex": "batch", "priority": "realtime"}


@pytest.mark.parametrize(
    ("headers", "body", "tier"),
    [
        ("", {}, "interactive"),
        ("x-slo-tier: batch\r\n", {}, "batch"),
        ("X-SLO-Tier: realtime\r\n", {"service_tier": "batch"}, "realtime"),
        ("", {"service_tier": "batch"}, "batch"),
        ("", {"service_tier": "auto"}, "interactive"),
        ("", {"service_tier": "default"}, "interactive"),
        ("", {"service_tier": "flex"}, "batch"),
        ("", {"service_tier": "priority"}, "realtime"),
        ("", {"service_tier": None}, "interactive"),
        ("x-slo-tpot-ms: 100\r\n", {}, "batch"),
        ("x-slo-tpot-ms: 99.5\r\n", {}, "interactive"),
        ("x-slo-ttft-ms: 800\r\nx-slo-tpot-ms: 20\r\n", {"service_tier": "batch"}, "realtime"),
        ("x-llm-d-slo-tpot-ms: 100\r\n", {}, "batch"),
        ("x-llm-d-slo-tpot-ms: 100\r\nx-slo-tpot-ms: 20\r\n", {}, "realtime"),
        ("x-slo-ttft-ms: 900\r\n", {}, "interactive"),
    ],
)
async def test_a_request_is_served_by_the_tier_that_it_asks_for(
    kit: Any, headers: str, body: dict[str, Any], tier: str
) -> None:
    stage = await kit.stage(service_tiers=SERVICE_TIERS)
    client = await stage.client()

    answer = await client.ask(kit.CHAT | body, headers=headers)

    assert answer.headers["x-multislo-tier"] == tier


async def test_a_request_s_own_deadline_reaches_the_core(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.ask(kit.CHAT, headers="x-llm-d-slo-ttft-ms: 1234.5\r\nx-slo-tpot-ms: 60\r\n")

    _, place = stage.gateway.recent_decisions[-1]
    assert place.tpot_s == 0.06
    now = time.monotonic()
    assert now < place.ttft_due < now + 1.2345


@pytest.mark.parametrize("value", ["0", "-5", "abc", "1e3", "nan", "inf", "3600001", "", "5 5", "0x10", "1_000"])
async def test_a_bad_deadline_is_a_400_that_names_header_value_and_range(kit: Any, value: str) -> None:
    stage = await kit.stage()
    client = await stage.client()

    answer = await client.ask(kit.CHAT, headers=f"X-SLO-TTFT-MS: {value}\r\n")

    assert (answer.status, answer.headers["x-multislo-reason"]) == (400, "invalid_slo")
    assert answer.error["message"] == (f"x-slo-ttft-ms: {value!r} must be a number of milliseconds from 1 to 3600000")
    assert answer.error["param"] == "x-slo-ttft-ms"


async def test_an_unknown_tier_is_a_400_that_names_the_legal_ones(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    answer = await client.ask(kit.CHAT, headers="x-slo-tier: gold\r\n")

    assert (answer.status, answer.headers["x-multislo-reason"]) == (400, "unknown_tier")
    assert answer.error["message"] == "x-slo-tier: 'gold' is not a tier; legal are: batch, interactive, realtime"


async def test_an_unknown_service_tier_is_a_400_that_names_the_legal_ones(kit: Any) -> None:
    stage = await kit.stage(service_tiers=SERVICE_TIERS)
    client = await stage.client()

    answer = await client.ask(kit.CHAT | {"service_tier": "realtme"})

    assert (answer.status, answer.headers["x-multislo-reason"]) == (400, "unknown_tier")
    assert (answer.error["param"], answer.error["message"]) == (
        "service_tier",
        "service_tier: 'realtme' must be one of auto, batch, default, flex, interactive, priority, realtime",
    )


async def test_a_tier_that_rejects_answers_429_with_retry_after(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    prompt = {"model": "llama", "prompt": list(range(60_000)), "max_tokens": 10}

    answer = await client.ask(prompt, "/v1/completions", "x-slo-tier: realtime\r\nx-slo-ttft-ms: 5\r\n")

    assert (answer.status, answer.headers["x-multislo-reason"]) == (429, "deadline")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.error["code"] == "rate_limit_exceeded"
    assert not stage.engines[0].asked
