"""`multislo up` and `multislo top`."""

import asyncio
import contextlib
import errno
import os
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import click
from rich.console import Console
from rich.live import Live

from multislo_api.cli import WrongManifest, manifest_at
from multislo_api.fleet import FleetSnapshot
from multislo_api.manifest import MultiSLOServing, ProfileConfigMap, ProfileFile
from multislo_api.number import Number
from multislo_operator.admin_client import AdminClient, RouterUnreachable
from multislo_operator.local.engines import NotHere, check_startable
from multislo_operator.local.ports import ROUTER_PORTS, Ports, refusal
from multislo_operator.local.top import frame
from multislo_operator.local.up import Up, UpSettings
from multislo_perf.profile import Profile, ProfileInvalid, load_profile
from multislo_perf.sizing import unattainable

ADMIN_URL = "http://127.0.0.1:9090"
"""Of a manifest that says nothing else."""
HELP = {"help_option_names": ["-h", "--help"]}


@click.command(
    "up",
    context_settings=HELP,
    epilog="Example: multislo up -f examples/demo.yaml --log-dir logs",
)
@click.option("-f", "--file", "manifest_path", required=True, type=click.Path(path_type=Path), help="The manifest.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the OpenAI API.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port of the OpenAI API; 0 takes a free one. Default: the manifest's."
)
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65535),
    help="Port of the admin listener; 0 takes a free one. Default: the manifest's.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File of keys, one per line, of which clients must send one. Default: the manifest's.",
)
@click.option(
    "--log-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for logs and decisions. Default: a new temporary one.",
)
@click.option("--fixed", is_flag=True, help="No scaling: every tier keeps its minimum.")
@click.option(
    "--instances",
    "pins",
    multiple=True,
    metavar="TIER=N",
    help="No scaling: this tier has N instances, the others their minimum. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stdout, instead of text on stderr.")
def up(
    manifest_path: Path,
    host: str,
    port: int | None,
    admin_port: int | None,
    api_key_file: Path | None,
    log_dir: Path | None,
    fixed: bool,
    pins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run a manifest's whole fleet on this machine: the router, and engines that follow the load.

    Ctrl-C lets running answers finish and stops everything; a second Ctrl-C stops at once.

    Exit codes: 0 stopped as asked, 1 a port is taken or the router could not start, 2 wrong use, 130 stopped at once.
    """
    manifest = manifest_at(manifest_path)
    profile = _profile(manifest)
    try:
        check_startable(manifest)
    except NotHere as error:
        raise WrongManifest(f"error: {error}") from None
    pinned = _pinned(manifest, pins) if fixed or pins else None
    ports = Ports(ROUTER_PORTS, os.getpid())
    port = _port(manifest.spec.router.port if port is None else port, ports)
    admin_port = _port(manifest.spec.router.admin_port if admin_port is None else admin_port, ports)
    _check_ports(host, port, admin_port)
    settings = UpSettings(
        manifest_path=manifest_path,
        folder=_folder(log_dir),
        port=port,
        admin_port=admin_port,
        pinned=pinned,
        router_options=("--host", host, *(("--api-key-file", str(api_key_file)) if api_key_file else ())),
        events=sys.stdout if as_json else None,
    )
    _tell(manifest, profile, settings, host)
    sys.exit(asyncio.run(_up(manifest, profile, settings)))


async def _up(manifest: MultiSLOServing, profile: Profile, settings: UpSettings) -> int:
    return await Up(manifest, profile, settings).run()


def _profile(manifest: MultiSLOServing) -> Profile:
    named = manifest.spec.profile
    if isinstance(named, ProfileConfigMap):
        raise WrongManifest(
            f'error: spec.profile.configMap: "{named.config_map}" is in a cluster; on one machine take a shipped '
            "profile's name or {file: PATH}"
        )
    try:
        return load_profile(named.file if isinstance(named, ProfileFile) else named)
    except ProfileInvalid as error:
        raise WrongManifest(f"error: {error}") from None


def _pinned(manifest: MultiSLOServing, pins: tuple[str, ...]) -> dict[str, int]:
    tiers = {tier.name: tier for tier in manifest.spec.tiers}
    pinned = {tier.name: tier.instances.min for tier in manifest.spec.tiers}
    for pin in pins:
        name, separator, text = pin.partition("=")
        if name not in tiers or not separator or not (text.isascii() and text.isdigit()):
            legal = f"TIER=N with one of {', '.join(tiers)} and a whole number"
            raise click.BadParameter(f'"{pin}" must be {legal}', param_hint="--instances")
        pinned[name] = int(text)
    budget = manifest.spec.scaling.accelerators_max // manifest.spec.engine.accelerator.per_instance
    if sum(pinned.values()) > budget:
        raise click.BadParameter(
            f"{sum(pinned.values())} instances in all must be at most the budget's {budget} (spec.scaling.acceleratorsMax)",
            param_hint="--instances",
        )
    return pinned


def _folder(log_dir: Path | None) -> Path:
    if log_dir is None:
        return Path(tempfile.mkdtemp(prefix="multislo-"))
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(f'"{log_dir}" cannot be made: {error.strerror}', param_hint="--log-dir") from None
    return log_dir


def _port(asked: int, ports: Ports) -> int:
    return asked or ports.take()


def _check_ports(host: str, port: int, admin_port: int) -> None:
    """Before anything starts. Of other refusals (an address that is not this machine's) the router tells."""
    for at, asked, option, field in (
        (host, port, "--port", "spec.router.port"),
        ("127.0.0.1", admin_port, "--admin-port", "spec.router.adminPort"),
    ):
        refused = refusal(at, asked)
        if refused is not None and refused.errno in (errno.EADDRINUSE, errno.EACCES):
            reason = "is in use" if refused.errno == errno.EADDRINUSE else "is not yours to use"
            _say(
                f"error: port {asked} of {at} {reason}; choose another by {option} or {field} ({option} 0: any free one)"
            )
            if refused.errno == errno.EADDRINUSE:
                _say("Is another `multislo up` of this manifest running?")
            sys.exit(1)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _tell(manifest: MultiSLOServing, profile: Profile, settings: UpSettings, host: str) -> None:
    """On stderr, before anything starts: where everything is, and what cannot work."""
    spec = manifest.spec
    _say(f"OpenAI API   http://{host}:{settings.port}/v1   model {spec.model.served_names[0]}")
    _say(
        f"live page    http://127.0.0.1:{settings.admin_port}/   in a terminal: multislo top --url http://127.0.0.1:{settings.admin_port}"
    )
    _say(f"logs         {settings.folder}")
    _say("stop         Ctrl-C (answers under way finish; again: at once)")
    if spec.router.replicas > 1:
        _say(f"warning: spec.router.replicas: {spec.router.replicas}; on one machine there is one router")
    latency = profile.latency
    if spec.engine.type == "Emulated":
        latency = latency.slower(spec.engine.emulation.slow_down)
    for tier in spec.tiers:
        for miss in unattainable(latency, tier.slo.ttft_s, tier.slo.tpot_s):
            _say(
                f"warning: tier {tier.name}: {miss.slo} {1e3 * miss.asked_s:g} ms cannot be met: an idle instance of profile "
                f"{profile.name} needs {1e3 * miss.idle_s:.1f} ms"
            )


@click.command("top", context_settings=HELP, epilog="Example: multislo top -f examples/demo.yaml")
@click.option(
    "-f",
    "--file",
    "manifest_path",
    type=click.Path(path_type=Path),
    help="The fleet's manifest, for its adminPort on this machine.",
)
@click.option("--url", help=f"URL of the router's admin listener, if it is another one.  [default: {ADMIN_URL}]")
@click.option("--once", is_flag=True, help="Print once and exit.")
@click.option(
    "--interval",
    "interval_s",
    type=Number(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between updates.",
)
def top(manifest_path: Path | None, url: str | None, once: bool, interval_s: float) -> None:
    """Watch a running fleet in the terminal: tiers against their SLOs, and the load of each instance.

    Exit codes: 0 done, 1 the router cannot be reached, 2 wrong use.
    """
    if url is None:
        url = ADMIN_URL
        if manifest_path is not None:
            url = f"http://127.0.0.1:{manifest_at(manifest_path).spec.router.admin_port}"
    elif manifest_path is not None:
        raise click.UsageError("--url and --file exclude each other: both say where the admin listener is")
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter(f'"{url}" must begin with http:// or https://', param_hint="--url")
    try:
        asyncio.run(_watch(url, once, interval_s))
    except RouterUnreachable as error:
        click.echo(f"error: no router can be reached: {error}", err=True)
        click.echo("Is it running, and is this its admin listener? -f MANIFEST or --url names another.", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        pass


async def _watch(url: str, once: bool, interval_s: float) -> None:
    console = Console()
    async with aiohttp.ClientSession() as session:
        client = AdminClient(session, url)
        shown = await client.fleet()
        if once:
            console.print(frame(shown, width=console.width))
            return
        before: FleetSnapshot | None = None
        with Live(
            frame(shown, width=console.width), console=console, screen=console.is_terminal, auto_refresh=False
        ) as live:
            seen_at = time.monotonic()
            while True:
                await asyncio.sleep(interval_s)
                note = None
                try:
                    before, shown = shown, await client.fleet()
                    seen_at = time.monotonic()
                except RouterUnreachable as error:
                    note = f"no answer for {time.monotonic() - seen_at:.0f} s: {error}"
                with contextlib.suppress(BrokenPipeError):
                    live.update(frame(shown, before, note, console.width), refresh=True)
