"""The demo's rival: the same router, shell and core, with plain round robin instead of the placement. Run as a separate program:
`python -m multislo_bench.round_robin -f MANIFEST --port N --engine URL ...`. It holds nothing back and refuses nothing."""

import asyncio
import os
import signal
from pathlib import Path

import click
import uvloop

from multislo_api.fleet import InstanceEntry, InstanceList
from multislo_api.manifest import load_manifest
from multislo_router.from_manifest import core_config, profile_of, shell_settings
from multislo_router.shell.gateway import Gateway
from multislo_sim.rivals import RIVALS

PARENT_LOOK_S = 0.5


@click.command()
@click.option("-f", "--file", "manifest_path", required=True, type=click.Path(path_type=Path))
@click.option("--port", required=True, type=click.IntRange(0, 65535))
@click.option("--policy", type=click.Choice(list(RIVALS)), default="round_robin", show_default=True)
@click.option("--engine", "engines", multiple=True, required=True, help="Base URL; repeat for each.")
def main(manifest_path: Path, port: int, policy: str, engines: tuple[str, ...]) -> None:
    """Serve a rival policy on the production router."""
    uvloop.run(_serve(manifest_path, port, policy, engines))


async def _serve(manifest_path: Path, port: int, policy: str, engines: tuple[str, ...]) -> None:
    manifest = load_manifest(manifest_path)
    config = core_config(manifest, profile_of(manifest.spec))
    gateway = Gateway(config, shell_settings(manifest), RIVALS[policy]())
    entries = [InstanceEntry(id=f"engine-{index}", url=url) for index, url in enumerate(engines)]
    gateway.set_fleet(InstanceList(instances=entries))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    parent = os.getppid()
    await gateway.start("127.0.0.1", port)
    try:
        while not stop.is_set() and os.getppid() == parent:
            try:
                async with asyncio.timeout(PARENT_LOOK_S):
                    await stop.wait()
            except TimeoutError:
                continue
    finally:
        await gateway.shutdown(0.0)


if __name__ == "__main__":
    main()
