"""The live page in headless Chromium, served by the real admin listener over the real core."""

import os
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from multislo_router.shell.page.picture import chromium_path, opened

pytestmark = pytest.mark.skipif(
    chromium_path() is None and os.environ.get("CI") != "true", reason="no Chromium is installed; CI has one"
)

WAIT_MS = 90_000


async def texts(page: Any, selector: str) -> list[str]:
    return await page.locator(selector).all_inner_texts()


async def test_each_tier_shows_its_attainment_and_its_latencies_against_the_slo(served: TestServer) -> None:
    async with opened(str(served.make_url("/"))) as page:
        assert await texts(page, ".tier h3") == ["realtime", "interactive", "batch"]
        assert await texts(page, ".tier .attained b") == ["100 %", "91.6 %", "100 %"]
        assert await texts(page, ".tier .top .quiet.small >> nth=2") == ["91.6 % since start"]
        marks = await texts(page, ".gauge .mark")
        assert marks == ["SLO 300 ms", "SLO 20 ms", "SLO 500 ms", "SLO 50 ms", "SLO 1 s", "SLO 100 ms"]
        gauges = page.locator(".gauge")
        assert [await gauges.nth(n).get_attribute("data-over") for n in range(3)] == ["false", "false", "true"]
        spoken = await gauges.nth(2).get_attribute("aria-label")
        assert spoken.startswith("First token: median 50 ms, 99th percentile 2 s, SLO 500 ms: 4.0")


async def test_the_gradient_falls_within_each_tier_and_shows_every_state(served: TestServer, busy: Any) -> None:
    status = busy.gateway.status(busy.now)
    async with opened(str(served.make_url("/"))) as page:
        for tier in ("realtime", "interactive", "batch", "warm pool"):
            bars = page.locator(f'.group[data-tier="{tier}"] .bar')
            loads = await bars.evaluate_all(
                "bars => bars.filter(b => b.matches('.ready')).map(b => Number(b.dataset.load))"
            )
            assert loads == sorted(loads, reverse=True)
            known = [i for i in status.instances if (i.tier or "warm pool") == tier]
            assert await bars.count() == len(known)
        looks = {}
        for instance in ("realtime-0", "interactive-2", "batch-1", "batch-2"):
            bar = page.locator(f'.bar[data-id="{instance}"]')
            looks[instance] = await bar.get_attribute("class"), await bar.get_attribute("aria-label")
        assert looks["interactive-2"] == ("bar starting", "interactive-2: starting")
        assert looks["batch-1"][0] == "bar draining"
        assert looks["batch-2"][0] == "bar failed"
        assert looks["realtime-0"][1].startswith("realtime-0: ready, load ")


async def test_the_arrow_keys_go_from_instance_to_instance(served: TestServer) -> None:
    async with opened(str(served.make_url("/"))) as page:
        await page.locator(".group .bar").first.focus()
        await page.keyboard.press("ArrowRight")
        chosen = await page.locator('.bar[aria-pressed="true"]').get_attribute("data-id")
        assert chosen.startswith("interactive-")
        assert chosen in await page.inner_text("#chosen")
        assert await page.evaluate("document.activeElement.dataset.id") == chosen
        assert await page.locator('.group .bar[tabindex="0"]').count() == 1


async def test_the_page_draws_what_it_has_seen(served: TestServer, busy: Any) -> None:
    async with opened(str(served.make_url("/"))) as page:
        for n in range(5):
            busy.serve("realtime")
            busy.serve("batch")
            await page.wait_for_selector(f'#time[data-points="{n + 2}"]', timeout=WAIT_MS)
        assert await page.locator('#time path[data-layer="realtime"]').count() == 2
        spoken = [await page.locator("#time figure > svg").nth(n).get_attribute("aria-label") for n in range(2)]
        assert spoken[0].startswith("Goodput now: realtime ")
        assert not spoken[0].startswith("Goodput now: realtime 0,")
        assert "interactive 2, batch 1, warm pool 1, draining 1, starting 1" in spoken[1]


async def test_a_narrow_window_scrolls_in_one_direction_only(served: TestServer) -> None:
    async with opened(str(served.make_url("/")), width=360, height=740) as page:
        await page.click("#all summary")
        await page.wait_for_selector("#all tbody tr")
        widths = await page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1] == 360


async def test_dark_mode_has_dark_paper(served: TestServer) -> None:
    papers = []
    for dark in (False, True):
        async with opened(str(served.make_url("/")), dark=dark) as page:
            papers.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    light, dark_paper = (sum(int(part) for part in paper[4:-1].split(",")) for paper in papers)
    assert light > 600
    assert dark_paper < 120


async def test_the_page_says_that_its_numbers_are_stale_when_the_router_is_gone(served: TestServer) -> None:
    async with opened(str(served.make_url("/"))) as page:
        assert not await page.is_visible("#stale")
        await served.close()
        await page.wait_for_selector("#stale", timeout=WAIT_MS)
        banner = await page.inner_text("#stale")
        assert "The router cannot be reached." in banner
        assert "stale" in banner
        assert await page.locator("#stale [role=alert]").count() == 1
        assert await page.inner_text("#link") == "Not connected"


async def test_a_router_without_a_fleet_has_a_page_too(fresh: TestServer) -> None:
    async with opened(str(fresh.make_url("/"))) as page:
        assert "There is no instance yet." in await page.inner_text("#chosen")
        assert await texts(page, ".tier .attained b") == ["\N{EN DASH}"] * 3
        assert "nothing in the last minute" in (await texts(page, ".gauge .values"))[0]


async def test_nothing_goes_wrong_unseen_in_the_page(served: TestServer) -> None:
    wrong: list[str] = []
    async with opened(str(served.make_url("/"))) as page:
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        await page.reload()
        await page.wait_for_selector('#time[data-points="2"]', timeout=WAIT_MS)
    assert wrong == []
