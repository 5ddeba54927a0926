"""What a path means: which spelling reaches what, and that no engine's administration is reached by any."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multislo_router.shell.errors import Fault
from multislo_router.shell.routes import PASSED, Route, Routes, normalised

ADMIN = [
    *(
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/collective_rpc",
        "/server_info",
        "/metrics",
        "/load",
        "/version",
        "/ping",
    ),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/update_weights", "/init_weight_transfer_engine", "/pause"),
    *("/resume", "/is_paused", "/abort_requests", "/reset_prefix_cache", "/reset_mm_cache", "/scale_elastic_ep"),
    *("/start_profile", "/stop_profile", "/docs", "/redoc", "/openapi.json", "/invocations", "/tokenizer_info"),
    *("/inference/v1/generate", "/v1/chat/completions/batch", "/fault_tolerance/apply", "/static/x"),
]
"""What vLLM serves beside its API, or generates with past the scheduling."""


def spellings(path: str) -> list[str]:
    """Ways to write a path that some server takes for the same."""
    last = path.rindex("/") + 1
    return [
        path,
        f"/{path}",
        f"{path}/",
        f"{path}//",
        f"{path}?x=1",
        path[:last] + f"%{ord(path[last]):02x}" + path[last + 1 :],
        path[:last] + f"%{ord(path[last]):02X}" + path[last + 1 :],
        path.replace("/", "/./"),
        f"/x/..{path}",
        f"/v1/models/../..{path}",
        f"/v1/chat/%2e%2e/%2E%2e{path}",
        f"/v1/tokenize/..%2f..{path}",
        path.replace("/", "%2F").replace("%2F", "/", 1),
        f"http://engine{path}",
        f"HTTPS://r:80{path}",
    ]


@pytest.mark.parametrize("path", ADMIN)
async def test_no_spelling_reaches_an_engine_s_administration(kit: Any, path: str) -> None:
    stage = await kit.stage()
    client = await stage.client()

    for spelling in [*spellings(path), path.upper(), f"{path};x", f"{path}%00", f"/%5c..{path}", f"/%252e%252e{path}"]:
        for method in ("POST", "GET", "PUT", "DELETE"):
            await client.send(f"{method} {spelling} HTTP/1.1\r\nhost: r\r\ncontent-length: 2\r\n\r\n{{}}".encode())
            answer = await client.answer()
            assert (answer.status, answer.headers["x-multislo-reason"]) == (404, "not_found"), (method, spelling)

    assert not stage.engines[0].asked


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_no_spelling_goes_past_the_scheduling(kit: Any, path: str) -> None:
    stage = await kit.stage()
    client = await stage.client()
    bodies = {"/v1/chat/completions": kit.CHAT, "/v1/completions": {"model": "llama", "prompt": "Hi"}}

    for spelling in spellings(path):
        answer = await client.ask(bodies[path], spelling, "x-slo-tier: batch\r\n")
        query = "?x=1" if "?" in spelling else ""
        assert (answer.status, answer.headers["x-multislo-tier"]) == (200, "batch"), spelling
        assert stage.engines[0].asked[-1].line == f"POST {path}{query} HTTP/1.1"

    assert stage.gateway.counters.passed_through == 0


@pytest.mark.parametrize(
    "target", ["/v1/chat/completions#x", "/v1/models?a#b", "ftp://r/v1/models", "http://a@r/health", "*"]
)
async def test_a_target_that_is_none_is_a_400(kit: Any, target: str) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.send(f"GET {target} HTTP/1.1\r\nhost: r\r\n\r\n".encode())

    assert (await client.answer()).headers["x-multislo-reason"] == "malformed"


async def test_a_path_with_another_method_is_a_405_that_names_the_right_ones(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    answers = []

    for method, path in (("GET", "/v1/chat/completions"), ("DELETE", "/v1/models/llama"), ("HEAD", "/tokenize")):
        await client.send(f"{method} {path} HTTP/1.1\r\nhost: r\r\n\r\n".encode())
        answers.append(await client.answer(head_only=method == "HEAD"))

    assert [answer.status for answer in answers] == [405, 405, 405]
    assert [answer.headers["allow"] for answer in answers] == ["OPTIONS, POST", "GET, HEAD, OPTIONS", "OPTIONS, POST"]
    assert answers[0].error["message"] == "GET /v1/chat/completions: the method must be one of OPTIONS, POST"
    assert not stage.engines[0].asked


async def test_options_are_answered_by_the_router_without_a_key(kit: Any) -> None:
    stage = await kit.stage(api_keys=(b"key",))
    client = await stage.client()
    answers = []

    for path in ("/v1/chat/completions", "/v1/models/llama", "*"):
        await client.send(f"OPTIONS {path} HTTP/1.1\r\nhost: r\r\n\r\n".encode())
        answers.append(await client.answer())

    assert [answer.status for answer in answers] == [204, 204, 204]
    allowed = [answer.headers["allow"] for answer in answers]
    assert allowed == ["OPTIONS, POST", "GET, HEAD, OPTIONS", "GET, HEAD, OPTIONS, POST"]
    assert not stage.engines[0].asked


@pytest.mark.parametrize(
    "path", ["/v1/models/org%2Fname", "/v1/models/org/name", "//v1/models/org%2fname/", "/v1/models/%6Frg/name"]
)
async def test_a_model_with_a_slash_in_its_name_is_found(kit: Any, path: str) -> None:
    stage = await kit.stage(served_names=("org/name", "llama"))
    client = await stage.client()

    await client.send(f"GET {path} HTTP/1.1\r\nhost: r\r\n\r\n".encode())

    assert (await client.answer()).json["id"] == "org/name"


async def test_a_model_that_is_a_folder_is_found(kit: Any) -> None:
    stage = await kit.stage(served_names=("/models/llama",))
    client = await stage.client()

    for path in ("/v1/models/%2Fmodels%2Fllama", "/v1/models//models/llama"):
        await client.send(f"GET {path} HTTP/1.1\r\nhost: r\r\n\r\n".encode())
        assert (await client.answer()).json["id"] == "/models/llama"


@pytest.mark.parametrize("path", ["/health", "/", "//", "/health/"])
async def test_health_is_answered_without_a_key_and_without_instances(kit: Any, path: str) -> None:
    stage = await kit.stage(api_keys=(b"key",))
    stage.set_fleet()
    client = await stage.client()

    await client.send(f"GET {path} HTTP/1.1\r\nhost: r\r\n\r\nHEAD {path} HTTP/1.1\r\nhost: r\r\n\r\n".encode())
    answer, head = await client.answer(), await client.answer(head_only=True)

    assert (answer.status, answer.json, head.status) == (200, {"status": "ok"}, 200)


async def test_an_engine_s_redirect_does_not_name_the_engine(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        location = f"Location: http://{asked.headers['host']}/tokenize?x=1\r\nx-more: 1\r\n"
        await line.send(kit.sized(b"", "307 Temporary Redirect", location))

    stage = await kit.stage(script)
    client = await stage.client()

    answer = await client.ask({"prompt": "a"}, "/tokenize")

    assert (answer.status, answer.headers["location"], answer.headers["x-more"]) == (307, "/tokenize?x=1", "1")
    assert str(stage.engines[0].port) not in answer.head.decode()


async def test_a_path_of_the_manifest_is_passed_by_its_methods(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        body = b"" if asked.line.startswith("HEAD") else b"{}"
        await line.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + body)

    stage = await kit.stage(script, extra_paths=(("/version", ("GET",)), ("/tokenize", ("DELETE",))))
    client = await stage.client()
    answers = []

    for method, path in (
        ("GET", "//version"),
        ("HEAD", "/version"),
        ("POST", "/version"),
        ("DELETE", "/tokenize"),
        ("POST", "/tokenize"),
    ):
        await client.send(f"{method} {path} HTTP/1.1\r\nhost: r\r\ncontent-length: 0\r\n\r\n".encode())
        answers.append(await client.answer(head_only=method == "HEAD"))

    assert [answer.status for answer in answers] == [200, 200, 405, 200, 200]
    assert [asked.line.rsplit(" ", 1)[0] for asked in stage.engines[0].asked] == [
        "GET /version",
        "HEAD /version",
        "DELETE /tokenize",
        "POST /tokenize",
    ]


PATHS = st.text("/.%2eEfF0cChamp15;\\#?*st", max_size=30).map(lambda text: text.encode())


@given(st.sampled_from([b"GET", b"POST", b"PUT", b"OPTIONS"]), PATHS)
@example(b"POST", b"//v1/./chat%2Fcompletions/")
def test_whatever_is_sent_to_an_engine_is_a_path_of_the_table(method: bytes, target: bytes) -> None:
    try:
        found = Routes().find(method, target)
    except Fault:
        return
    assert normalised(found.path) == found.path or b"%" in found.path or found.path == b"*"
    if found.route is Route.PASSED:
        assert method.decode() in PASSED[found.path.decode()]
        assert found.wire.partition(b"?")[0] == found.path
