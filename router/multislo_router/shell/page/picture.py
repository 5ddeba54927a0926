"""Takes a picture of a running router's live page in headless Chromium: `python -m multislo_router.shell.page.picture --url
http://127.0.0.1:9090/ --out docs/live-page.png`. The page's tests open it with the same code.
"""

import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from multislo_api.number import Number

if TYPE_CHECKING:
    from playwright.async_api import Page

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# No sandbox: it needs user namespaces, which containers seldom allow; the page that is opened is our own.
CHROMIUM_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--font-render-hinting=none"]
LOAD_TIMEOUT_MS = 15_000


def chromium_path() -> str | None:
    """The installed Chromium, or None."""
    return next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)


@asynccontextmanager
async def opened(url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> "AsyncIterator[Page]":
    """The live page at `url`, once it has shown its first fleet."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=CHROMIUM_ARGS)
        try:
            page = await browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
                device_scale_factor=2 if width < 800 else 1.5,
            )
            await page.goto(url, timeout=LOAD_TIMEOUT_MS)
            await page.wait_for_selector(".tier", timeout=LOAD_TIMEOUT_MS)
            yield page
        finally:
            await browser.close()


async def _take(url: str, out: Path, dark: bool, width: int, wait_s: float) -> None:
    async with opened(url, width=width, dark=dark) as page:
        await page.wait_for_timeout(1000 * wait_s)
        await page.screenshot(path=out, full_page=True)


@click.command()
@click.option("--url", required=True, help="The router's admin listener, for example http://127.0.0.1:9090/.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The PNG to write.")
@click.option("--dark", is_flag=True, help="In dark mode.")
@click.option(
    "--width", type=click.IntRange(min=200), default=1280, show_default=True, help="Of the window, in pixels."
)
@click.option(
    "--wait", "wait_s", type=Number(min=0), default=2.0, show_default=True,
    help="Seconds that the page watches first: it draws only what it has seen.",
)  # fmt: skip
def main(url: str, out: Path, dark: bool, width: int, wait_s: float) -> None:
    """Take a picture of a running router's live page.

    Example: python -m multislo_router.shell.page.picture --url http://127.0.0.1:9090/ --out page.png --wait 60
    """
    import asyncio

    try:
        from playwright.async_api import Error
    except ModuleNotFoundError:
        _fail("the Python package playwright is not installed")
    if chromium_path() is None:
        _fail(f"no Chromium on the PATH (looked for {', '.join(CHROMIUM_NAMES)})")
    try:
        asyncio.run(_take(url, out, dark, width, wait_s))
    except (Error, OSError) as error:
        _fail(str(error).strip().splitlines()[0])
    click.echo(f"wrote {out}", err=True)


def _fail(why: str) -> None:
    click.echo(f"error: {why}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
