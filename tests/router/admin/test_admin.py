"""The admin listener over real HTTP, with the real core behind it."""

import asyncio
from io import BytesIO
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer

from multislo_api.fleet import FleetSnapshot


async def asked(server: TestServer, method: str, path: str, **body: Any) -> tuple[int, Any]:
    async with ClientSession() as session, session.request(method, server.make_url(path), **body) as answer:
        return answer.status, await (answer.json() if answer.content_type == "application/json" else answer.text())


def entry(**fields: Any) -> dict[str, Any]:
    return {"id": "i-0", "url": "http://127.0.0.1:8100", "tier": "batch"} | fields


async def problems(server: TestServer, body: Any) -> list[tuple[str, str, str]]:
    status, answer = await asked(server, "PUT", "/instances", json=body)
    assert status == 400
    found = [(p["path"], p["value"], p["legal"]) for p in answer["error"]["problems"]]
    assert all(path in answer["error"]["message"] for path, _, _ in found)
    return found


async def test_the_fleet_is_told_as_the_core_believes_it(served: TestServer) -> None:
    status, body = await asked(served, "GET", "/fleet")
    assert status == 200
    fleet = FleetSnapshot.model_validate(body)
    assert [tier.name for tier in fleet.tiers] == ["realtime", "interactive", "batch"]
    by_id = {instance.id: instance for instance in fleet.instances}
    assert {i.id: i.state for i in fleet.instances if i.state != "ready"} == {
        "interactive-2": "starting",
        "batch-1": "draining",
        "batch-2": "failed",
    }
    assert by_id["realtime-0"].url == "http://127.0.0.1:8100"
    assert by_id["spare-0"].tier is None
    interactive = fleet.tiers[1]
    assert (interactive.requests_met, interactive.requests_missed) == (11, 1)
    assert interactive.attainment == pytest.approx(11 / 12)
    assert (fleet.model, fleet.placement, fleet.generation) == ("llama", "Pack", 1)


async def test_a_fleet_that_is_put_is_the_fleet_that_is_told(fresh: TestServer) -> None:
    put = [entry(), entry(id="i-1", url="http://127.0.0.1:8101", tier=None, state="starting")]
    assert (await asked(fresh, "PUT", "/instances", json={"instances": put}))[0] == 200
    _, body = await asked(fresh, "GET", "/fleet")
    assert [(i["id"], i["tier"], i["state"]) for i in body["instances"]] == [
        ("i-0", "batch", "ready"),
        ("i-1", None, "starting"),
    ]
    assert (await asked(fresh, "PUT", "/instances", json={"instances": []}))[0] == 200
    _, body = await asked(fresh, "GET", "/fleet")
    assert body["instances"] == []
    assert body["generation"] == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"tier": "fast"},
            ("instances[0].tier", '"fast"', "one of realtime, interactive, batch, or null for the warm pool"),
        ),
        ({"state": "gone"}, ("instances[0].state", '"gone"', "'starting', 'ready' or 'draining'")),
        ({"epoch": -1}, ("instances[0].epoch", "-1", "at least 0")),
        ({"epoch": 1.5}, ("instances[0].epoch", "1.5", "a whole number")),
        ({"epoch": "1"}, ("instances[0].epoch", '"1"', "a whole number")),
        ({"epoch": 1 << 80}, ("instances[0].epoch", str(1 << 80), "at most 9223372036854775807")),
        ({"batch_tokens": 0}, ("instances[0].batch_tokens", "0", "at least 1")),
        ({"batch_tokens": True}, ("instances[0].batch_tokens", "true", "a whole number")),
        ({"id": 7}, ("instances[0].id", "7", "a string")),
    ],
)
async def test_a_wrong_field_is_named_with_its_value_and_what_is_legal(
    fresh: TestServer, change: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    assert await problems(fresh, {"instances": [entry(**change)]}) == [expected]


@pytest.mark.parametrize(
    "id",
    [
        "",
        "i\r\nx: 1",
        "i\n",
        "i 0",
        " i",
        'i"',
        "i\\",
        "i,j",
        "i\x00",
        "i\u007f",
        "\u00ef",
        "\u2028",
        "-i",
        "i/",
        "i" * 254,
    ],
)
async def test_an_id_that_is_no_header_and_no_label_is_refused(fresh: TestServer, id: str) -> None:
    [(path, _, legal)] = await problems(fresh, {"instances": [entry(id=id)]})
    assert path == "instances[0].id"
    assert legal.startswith("1 to 253 of A-Z, a-z, 0-9,")
    assert (await asked(fresh, "GET", "/fleet"))[1]["generation"] == 0


@pytest.mark.parametrize(
    "url",
    [
        *("", "http://", "http://:1", "127.0.0.1:1", "//127.0.0.1:1", "https://a:1", "ftp://a", "HTTP://a", "unix:/x"),
        *("http://a:abc", "http://a:0", "http://a:-1", "http://a:65536", "http://a:99999", "http://a:", "http://a:01"),
        *(
            "http://a:1/",
            "http://a:1/v1",
            "http://a:1?x",
            "http://a:1#x",
            "http://u:p@a:1",
            "http://u@a",
            "http://a:1:2",
        ),
        *(
            "http://a\r\nx: 1",
            "http://a:1\n",
            "http://a b",
            " http://a",
            "http://a\x00",
            "http://\u00e4",
            "http://[::1",
            "http://[x]:1",
        ),
    ],
)
async def test_a_url_that_is_no_host_and_port_is_refused(fresh: TestServer, url: str) -> None:
    [(path, _, legal)] = await problems(fresh, {"instances": [entry(url=url)]})
    assert (path, legal) == (
        "instances[0].url",
        "http://HOST or http://HOST:PORT, with a port from 1 to 65535 and nothing behind it",
    )
    assert (await asked(fresh, "GET", "/fleet"))[1]["generation"] == 0


@pytest.mark.parametrize(
    "url", ["http://a", "http://a:1", "http://[::1]:65535", "http://pod-0.svc.cluster.local:8000", "http://engine_1:80"]
)
async def test_every_host_and_port_is_taken(fresh: TestServer, url: str) -> None:
    assert (await asked(fresh, "PUT", "/instances", json={"instances": [entry(url=url)]}))[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"instances":' * 50_000,
        b'{"instances": [{"epoch": ' + b"9" * 10_000 + b"}]}",
        b"null",
        b"NaN",
    ],
)
async def test_a_body_that_is_no_list_of_instances_is_a_400(fresh: TestServer, body: bytes) -> None:
    status, answer = await asked(fresh, "PUT", "/instances", data=body)
    assert status == 400
    assert answer["error"]["problems"]


async def test_a_body_in_an_encoding_that_it_is_not_in_is_a_400(fresh: TestServer) -> None:
    async with ClientSession() as session:
        url, headers = fresh.make_url("/instances"), {"content-encoding": "gzip"}
        async with session.put(url, data=BytesIO(b'{"instances": []}'), headers=headers) as answer:
            assert answer.status == 400


async def test_all_mistakes_are_named_at_once_and_nothing_is_changed(fresh: TestServer) -> None:
    found = await problems(fresh, {"instances": [entry(tier="a"), entry(tier="b", id="i-1", url="http://127.0.0.1:1")]})
    assert [path for path, _, _ in found] == ["instances[0].tier", "instances[1].tier"]
    _, body = await asked(fresh, "GET", "/fleet")
    assert body["generation"] == 0


async def test_two_instances_with_one_id_or_one_url_are_refused(fresh: TestServer) -> None:
    found = await problems(fresh, {"instances": [entry(), entry()]})
    assert [path for path, _, _ in found] == [
        "instances[0].id",
        "instances[1].id",
        "instances[0].url",
        "instances[1].url",
    ]
    assert "stands 2 times" in found[0][2]


async def test_a_body_that_is_no_json_is_refused(fresh: TestServer) -> None:
    status, answer = await asked(fresh, "PUT", "/instances", data=b"{instances")
    assert status == 400
    assert "must be JSON" in answer["error"]["message"]
    assert await problems(fresh, []) == [("body", "[]", "an object")]
    assert await problems(fresh, {}) == [("instances", "null", "given")]


async def test_fields_of_a_newer_operator_are_passed_over_and_named_in_the_answer_and_once_in_the_log(
    fresh: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    later = {
        "instances": [entry(zone="a"), entry(id="i-1", url="http://127.0.0.1:8101", limits={"kv": 1})],
        "later": {},
    }
    for _ in range(3):
        status, answer = await asked(fresh, "PUT", "/instances", json=later)
        assert status == 200
        assert answer["instances"] == 2
        assert sorted(answer["ignored"]) == ["instances[0].zone", "instances[1].limits", "later"]

    _, body = await asked(fresh, "GET", "/fleet")
    assert [i["id"] for i in body["instances"]] == ["i-0", "i-1"]
    (warning,) = [record.message for record in caplog.records if "does not know" in record.message]
    assert "instances[0].zone" in warning


async def test_a_version_of_the_list_that_is_not_known_is_refused(fresh: TestServer) -> None:
    assert await problems(fresh, {"version": 2, "instances": []}) == [("version", "2", "1")]


async def test_a_list_of_mistakes_stays_short(fresh: TestServer) -> None:
    body = {"instances": [entry(id=f"i-{n}", url=f"http://127.0.0.1:{n}", tier="no") for n in range(1, 500)]}
    status, answer = await asked(fresh, "PUT", "/instances", json=body)
    assert status == 400
    assert len(answer["error"]["problems"]) == 20
    assert answer["error"]["message"].endswith("; and 479 more")


async def test_a_body_without_end_is_cut_off(fresh: TestServer) -> None:
    status, answer = await asked(fresh, "PUT", "/instances", data=BytesIO(b" " * (17 * 2**20)))
    assert status == 413
    assert "longer than 16777216 bytes" in answer["error"]["message"]


async def test_the_router_is_alive_from_its_start_and_ready_with_its_first_ready_instance(fresh: TestServer) -> None:
    assert (await asked(fresh, "GET", "/healthz"))[0] == 200
    assert (await asked(fresh, "GET", "/readyz"))[0] == 503
    await asked(fresh, "PUT", "/instances", json={"instances": [entry(state="starting")]})
    assert await asked(fresh, "GET", "/readyz") == (503, "no instance is ready\n")
    await asked(fresh, "PUT", "/instances", json={"instances": [entry()]})
    assert await asked(fresh, "GET", "/readyz") == (200, "ok, 1 ready\n")


async def test_a_router_that_knows_its_fleet_can_answer_for_an_empty_one(fresh: TestServer) -> None:
    status, text = await asked(fresh, "GET", "/readyz?instances=0")
    assert (status, "has not been told" in text) == (503, True)
    await asked(fresh, "PUT", "/instances", json={"instances": []})
    assert await asked(fresh, "GET", "/readyz?instances=0") == (200, "ok, 0 ready\n")
    assert (await asked(fresh, "GET", "/readyz?instances=1"))[0] == 503
    assert (await asked(fresh, "GET", "/readyz?instances=few"))[0] == 400


async def test_a_router_that_shuts_down_is_alive_but_not_ready(served: TestServer, busy: Any) -> None:
    busy.gateway.closing = True
    assert await asked(served, "GET", "/readyz") == (503, "shutting down\n")
    assert (await asked(served, "GET", "/healthz"))[0] == 200


async def test_the_last_decisions_are_told_with_their_terms(served: TestServer, busy: Any) -> None:
    status, body = await asked(served, "GET", "/debug/decisions?n=3")
    assert status == 200
    assert len(body["decisions"]) == 3
    last, (at, made) = body["decisions"][-1], busy.gateway.recent_decisions[-1]
    assert (last["decision"], last["at"], last["request"]) == (type(made).__name__, at, made.request)
    placed = next(
        d for d in (await asked(served, "GET", "/debug/decisions"))[1]["decisions"] if d["decision"] == "Place"
    )
    assert {
        "instance",
        "tier",
        "kind",
        "ttft_predicted_s",
        "iteration_predicted_s",
        "room_s",
        "reason",
    } <= placed.keys()


@pytest.mark.parametrize("n", ["0", "-3", "x", "", "9" * 5000])
async def test_a_wrong_number_of_decisions_is_refused(served: TestServer, n: str) -> None:
    status, answer = await asked(served, "GET", f"/debug/decisions?n={n}")
    assert status == 400
    assert answer["error"]["problems"][0]["path"] == "n"


async def test_the_event_loops_lag_is_sampled_while_the_listener_runs(served: TestServer) -> None:
    for _ in range(100):
        _, text = await asked(served, "GET", "/metrics")
        if "multislo_event_loop_lag_seconds_count 0.0" not in text:
            return
        await asyncio.sleep(0.1)
    pytest.fail("no lag was sampled in ten seconds")


async def test_the_page_may_load_nothing_from_elsewhere(served: TestServer) -> None:
    async with ClientSession() as session, session.get(served.make_url("/")) as answer:
        assert answer.content_type == "text/html"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        text = await answer.text()
    assert "https://" not in text
    assert "src=" not in text
