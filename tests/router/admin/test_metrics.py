"""The exposition: what it says, that Prometheus can read it, and that docs/metrics.md lists it."""

import asyncio
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from multislo_router.core.status import Histogram
from multislo_router.shell.exposition import SAMPLES_A_SLICE, exposition
from multislo_router.shell.metrics import LAG_EDGES, METRICS, table
from multislo_router.shell.scrape import Scrape

DOC = Path(__file__).parents[3] / "docs" / "metrics.md"


async def scraped(server: TestServer) -> str:
    async with ClientSession() as session, session.get(server.make_url("/metrics")) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        return await answer.text()


async def families(server: TestServer) -> dict[str, Family]:
    return {family.name: family for family in text_string_to_metric_families(await scraped(server))}


def value(found: dict[str, Family], sample: str, **labels: str) -> float | None:
    name = sample.removesuffix("_total") if sample.endswith("_total") else re.sub(r"_(bucket|count|sum)$", "", sample)
    rows = [s.value for s in found[name].samples if s.name == sample and labels.items() <= s.labels.items()]
    assert len(rows) <= 1, rows
    return rows[0] if rows else None


async def test_the_exposition_holds_every_metric_of_the_table_with_its_type_and_labels(served: TestServer) -> None:
    found = await families(served)
    for metric in METRICS:
        family = found[metric.name.removesuffix("_total")]
        assert family.type == metric.type
        assert family.documentation == metric.meaning
        assert family.samples, metric.name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), sample
    assert {name for name in found if name.startswith("multislo_")} == {m.name.removesuffix("_total") for m in METRICS}


async def test_counters_tell_what_became_of_the_requests(served: TestServer) -> None:
    found = await families(served)
    assert value(found, "multislo_requests_total", tier="realtime", outcome="completed") == 12
    assert value(found, "multislo_requests_total", tier="realtime", outcome="engine_failed") == 0
    assert value(found, "multislo_slo_requests_total", tier="interactive", result="met") == 11
    assert value(found, "multislo_slo_requests_total", tier="interactive", result="missed") == 1
    assert value(found, "multislo_placements_total", tier="realtime", kind="own_tier") >= 12
    assert value(found, "multislo_fleet_updates_total") == 1


async def test_a_histogram_has_cumulative_buckets_and_an_edge_on_the_slo(served: TestServer) -> None:
    found = await families(served)
    rows = found["multislo_time_to_first_token_seconds"].samples
    buckets = [s for s in rows if s.name.endswith("_bucket") and s.labels["tier"] == "realtime"]
    counts = [s.value for s in buckets]
    assert counts == sorted(counts)
    assert "0.3" in {s.labels["le"] for s in buckets}
    assert counts[-1] == value(found, "multislo_time_to_first_token_seconds_count", tier="realtime") > 0


async def test_an_instance_is_in_one_state_and_unknown_values_are_absent(served: TestServer) -> None:
    found = await families(served)
    states = [s for s in found["multislo_instance_state"].samples if s.labels["instance_id"] == "batch-2"]
    assert {s.labels["state"]: s.value for s in states} == {"starting": 0, "ready": 0, "draining": 0, "failed": 1}
    assert value(found, "multislo_instance_kv_tokens_reported", instance_id="realtime-0") == 2500
    assert value(found, "multislo_instance_kv_tokens_reported", instance_id="interactive-0") is None
    assert value(found, "multislo_instances", tier="warm_pool", state="ready") == 1


async def test_the_gradient_is_summed_up_per_tier(served: TestServer, busy: Any) -> None:
    found = await families(served)
    loads = [i.load for i in busy.gateway.status(busy.now).instances if i.tier == "interactive" and i.state == "ready"]
    assert value(found, "multislo_gradient_fullest_ratio", tier="interactive") == max(loads)
    idle = [
        i
        for i in busy.gateway.status(busy.now).instances
        if i.tier == "batch" and i.state == "ready" and not i.requests
    ]
    assert value(found, "multislo_gradient_emptied_instances", tier="batch") == len(idle)


async def test_a_tier_without_an_instance_has_no_gradient(fresh: TestServer) -> None:
    found = await families(fresh)
    assert value(found, "multislo_gradient_fullest_ratio", tier="batch") is None
    assert value(found, "multislo_gradient_emptied_instances", tier="batch") == 0


async def test_the_process_tells_of_itself(served: TestServer) -> None:
    found = await families(served)
    assert value(found, "process_resident_memory_bytes") > 1e6


async def test_a_slice_boundary_inside_a_family_leaves_no_trace(busy: Any) -> None:
    status = busy.gateway.status(busy.now)
    one = status.instances[0]
    status.instances = [
        type(one)(**{**{f: getattr(one, f) for f in one.__slots__}, "id": f"i-{n}"}) for n in range(1500)
    ]
    scrape = Scrape(status, 1.0, "0", Histogram(LAG_EDGES), Histogram(LAG_EDGES), {}, {}, 0, 0, 0, {}, {}, {})
    text = b"".join([part async for part in exposition(scrape, CollectorRegistry())]).decode()
    parsed = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(parsed["multislo_instance_state"].samples) == 4 * 1500 > SAMPLES_A_SLICE
    assert text.count("# TYPE multislo_instance_state ") == 1


def test_the_documentation_lists_exactly_these_metrics() -> None:
    assert table() in DOC.read_text(), "docs/metrics.md: paste the output of `python -m multislo_router.shell.metrics`"


async def test_the_documentation_names_every_metric_of_the_process(served: TestServer) -> None:
    found = await families(served)
    listed = DOC.read_text()
    for name, family in found.items():
        suffix = "_total" if family.type == "counter" else ""
        assert f"`{name}{suffix}`" in listed, name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_promtool_finds_nothing_to_say(served: TestServer) -> None:
    text = await scraped(served)
    pipe = asyncio.subprocess.PIPE
    promtool = await asyncio.create_subprocess_exec(
        "promtool", "check", "metrics", stdin=pipe, stdout=pipe, stderr=pipe
    )
    said = b"".join(await promtool.communicate(text.encode())).decode()
    complaints = [line for line in said.splitlines() if "multislo_" in line or "error" in line]
    assert complaints == []
