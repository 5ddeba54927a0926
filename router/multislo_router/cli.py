"""`multislo router`: the gateway and its admin listener in one process, until it is told to stop."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import uvloop
from aiohttp import web

from multislo_api.cli import WrongManifest, manifest_at
from multislo_api.fleet import SHUTDOWN_DELAY_VARIABLE, TOKEN_VARIABLE
from multislo_api.number import Number
from multislo_api.tolerant import VARIABLE, warning
from multislo_perf.profile import ProfileInvalid, load_profile
from multislo_router.core.config import CoreConfig
from multislo_router.from_manifest import (
    Unusable,
    api_keys_of,
    core_config,
    profile_of,
    read_api_keys,
    shell_settings,
)
from multislo_router.shell.admin import Admin
from multislo_router.shell.gateway import Gateway
from multislo_router.shell.settings import ShellSettings

DRAIN_TIMEOUT_S = 120.0
"""A long answer at 100 ms a token has 1,200 tokens in it."""
PARENT_LOOK_S = 0.5
"""Between two looks for the parent, where the system cannot wake us at its end."""
ADMIN_CLOSE_S = 1.0
"""A scrape that is under way may end; nothing else there is worth waiting for."""


MALLOC_MMAP_THRESHOLD: Final = -3
"""glibc's M_MMAP_THRESHOLD."""
MMAP_BYTES: Final = 64 * 1024
"""A block of this size or more goes back to the system when it is freed. By itself glibc comes to keep blocks of up to 32 MiB on its heap,
where a small one behind them holds them all."""


@dataclass(frozen=True, slots=True)
class Listeners:
    host: str
    port: int
    admin_host: str
    admin_port: int


@dataclass(frozen=True, slots=True)
class Stopping:
    """Seconds, one after the other."""

    delay_s: float
    drain_timeout_s: float


@click.command(
    "router",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: multislo router -f examples/llama-h200.yaml --port 8000 --admin-port 9090",
)
@click.option("-f", "--file", "manifest_path", required=True, type=click.Path(path_type=Path), help="The manifest.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the OpenAI API.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port of the OpenAI API; 0 takes a free one. Default: the manifest's."
)
@click.option("--admin-host", default="127.0.0.1", show_default=True, help="Address of the admin listener.")
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65535),
    help="Port of the OpenAI API; 0 takes a free one. Default: the manifest's.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File of keys, one per line, of which clients must send one. Default: the manifest's.",
)
@click.option("--profile", "profile_name", help="Latency profile (shipped name or path). Default: the manifest's.")
@click.option(
    "--drain-timeout", "drain_timeout_s", type=Number(min=0), default=DRAIN_TIMEOUT_S, show_default=True,
    help="Seconds that running answers have after the router is told to stop.",
)  # fmt: skip
@click.option(
    "--shutdown-delay", "shutdown_delay_s", type=Number(min=0, max=600), default=0.0, show_default=True,
    envvar=SHUTDOWN_DELAY_VARIABLE, show_envvar=True,
    help="Seconds that the router serves on after it is told to stop, while its health checks fail, before it drains.",
)  # fmt: skip
@click.option(
    "--unknown-fields", type=click.Choice(["refuse", "ignore"]), default="refuse", envvar=VARIABLE, show_envvar=True,
    show_default=True, help="Of manifest and profile; ignore warns of each, for files that a newer version wrote.",
)  # fmt: skip
@click.option("--parent-pid", type=click.IntRange(min=1), help="Exit when this process is gone.")
def router(
    manifest_path: Path,
    host: str,
    port: int | None,
    admin_host: str,
    admin_port: int | None,
    api_key_file: Path | None,
    profile_name: str | None,
    drain_timeout_s: float,
    shutdown_delay_s: float,
    unknown_fields: str,
    parent_pid: int | None,
) -> None:
    """Run the router alone. PUT /instances on its admin listener tells it the fleet.

    Ctrl-C or SIGTERM lets running answers finish, after the shutdown delay; a second one stops at once. With MULTISLO_FLEET_TOKEN in the
    environment, PUT /instances must send its value in the header x-multislo-fleet-token.
    """
    tolerant = unknown_fields == "ignore"
    of_manifest: list[str] | None = [] if tolerant else None
    of_profile: list[str] | None = [] if tolerant else None
    manifest = manifest_at(manifest_path, of_manifest)
    own = manifest.spec.router
    try:
        profile = profile_of(manifest.spec) if profile_name is None else load_profile(profile_name, of_profile)
        keys = api_keys_of(own.api_keys) if api_key_file is None else read_api_keys(api_key_file, "--api-key-file")
    except (Unusable, ProfileInvalid) as error:
        raise WrongManifest(f"error: {error}") from None
    for source, ignored in ((manifest_path, of_manifest), (profile_name, of_profile)):
        if ignored:
            click.echo(f"warning: {warning(str(source), ignored)}", err=True)
    listeners = Listeners(
        host, own.port if port is None else port, admin_host, own.admin_port if admin_port is None else admin_port
    )
    _return_memory()
    config, settings = core_config(manifest, profile), shell_settings(manifest, keys)
    stopping = Stopping(shutdown_delay_s, drain_timeout_s)
    finished = uvloop.run(_serve(config, settings, settings.served_names[0], listeners, stopping, parent_pid))
    sys.exit(0 if finished else 1)


async def _serve(
    config: CoreConfig,
    settings: ShellSettings,
    model: str,
    listeners: Listeners,
    stopping: Stopping,
    parent_pid: int | None,
) -> bool:
    """Until told to stop. False: at once, with answers perhaps cut off."""
    stop, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: at_once.set() if stop.is_set() else stop.set())
    gateway = _gateway(config, settings)
    token = _fleet_token()
    admin = Admin(gateway, model=model, placement=config.placement.value, token=token)
    runner = web.AppRunner(admin.application(), access_log=None, shutdown_timeout=ADMIN_CLOSE_S)
    watcher = None if parent_pid is None else asyncio.create_task(_watch(parent_pid, stop, at_once))
    try:
        await runner.setup()
        with _taken(listeners.admin_host, listeners.admin_port, "--admin-port, --admin-host or spec.router.adminPort"):
            await web.TCPSite(runner, listeners.admin_host, listeners.admin_port).start()
        with _taken(listeners.host, listeners.port, "--port, --host or spec.router.port"):
            await gateway.start(listeners.host, listeners.port)
        _tell(listeners, gateway.port, runner.addresses[0][1], config)
        await stop.wait()
        await _leave(gateway, at_once, stopping.delay_s)
        return await _finish(gateway, at_once, stopping.drain_timeout_s)
    finally:
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        await runner.cleanup()


def _fleet_token() -> str | None:
    """None where the variable is not set. One that is set and empty was meant to be a token, and must not open the listener to all."""
    text = os.environ.get(TOKEN_VARIABLE)
    if text is None:
        return None
    token = text.strip()
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise WrongManifest(f"error: {TOKEN_VARIABLE} must be one token of visible ASCII characters, or not set")
    return token


def _return_memory() -> None:
    """Bodies come and go by megabytes: makes what is freed leave the process."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(MALLOC_MMAP_THRESHOLD, MMAP_BYTES)


def _gateway(config: CoreConfig, settings: ShellSettings) -> Gateway:
    try:
        return Gateway(config, settings)
    except ValueError as error:  # The tokenizer's file.
        raise WrongManifest(f"error: {error}") from None


async def _leave(gateway: Gateway, at_once: asyncio.Event, delay_s: float) -> None:
    """Serve on until those who send here have heard that they shall not."""
    gateway.leave()
    if not delay_s or at_once.is_set():
        return
    click.echo(
        f"stopping in {delay_s:g} s: health checks fail, requests are still served (again: stop at once)", err=True
    )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await at_once.wait()


async def _finish(gateway: Gateway, at_once: asyncio.Event, drain_timeout_s: float) -> bool:
    """Let answers under way finish, unless there is no patience for it."""
    drain = asyncio.create_task(gateway.shutdown(drain_timeout_s))
    hurry = asyncio.create_task(at_once.wait())
    under_way = len(gateway.exchanges) + len(gateway.passing)
    if under_way and not at_once.is_set():
        click.echo(f"stopping: {under_way} answers are under way (again: stop at once)", err=True)
    await asyncio.wait([drain, hurry], return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    finished = drain.done() or not under_way
    if not drain.done():
        drain.cancel()
        await asyncio.gather(drain, return_exceptions=True)
        await gateway.shutdown(0.0)
    else:
        await drain
    return finished


@contextlib.contextmanager
def _taken(host: str, port: int, by: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise click.ClickException(f"cannot listen on {host}:{port}: {reason}; choose another by {by}") from None


def _tell(listeners: Listeners, port: int, admin_port: int, config: CoreConfig) -> None:
    tiers = ", ".join(tier.name for tier in config.tiers)
    click.echo(f"OpenAI API   http://{listeners.host}:{port}/v1  ({config.placement.value}; tiers {tiers})", err=True)
    click.echo(f"live page    http://{listeners.admin_host}:{admin_port}/  (and /metrics, /fleet)", err=True)


async def _watch(pid: int, stop: asyncio.Event, at_once: asyncio.Event) -> None:
    """Stops the router at once when the process is gone: its engines are going too."""
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        gone.set()
    except (AttributeError, OSError):  # Another system than Linux.
        while _is_there(pid):  # noqa: ASYNC110  (it cannot wake us)
            await asyncio.sleep(PARENT_LOOK_S)
        gone.set()
    else:
        try:
            loop.add_reader(handle, gone.set)
            await gone.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
    stop.set()
    at_once.set()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
