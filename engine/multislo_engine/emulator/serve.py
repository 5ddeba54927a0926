"""The life of an emulator process: start-up delay, listening, SIGTERM as vLLM takes it, and the end with its parent."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator

import uvloop
from aiohttp import web

from multislo_engine.emulator.app import EmulatorApp
from multislo_engine.emulator.config import EmulatorConfig

KEEP_ALIVE_S = 5.0
"""An idle connection is closed after this, as vLLM's server does: a client that keeps connections has to expect it."""
BACKLOG = 2048
FAREWELL_S = 1.0
"""What is granted for writing the last bytes of aborted answers."""
PARENT_POLL_S = 0.5
"""How often a parent is looked for where the kernel cannot tell (no pidfd)."""


def run(config: EmulatorConfig) -> None:
    """Serves until a signal or the parent's end. Raises OSError when the port is taken."""
    uvloop.run(_serve(config))


async def _serve(config: EmulatorConfig) -> None:
    stop = asyncio.Event()
    with _signals(stop), _parent(config.parent_pid, stop):
        # As vLLM: nobody listens until the model is loaded.
        if await _stopped(stop, config.startup_s):
            return
        emulator = EmulatorApp(config)
        runner = web.AppRunner(
            emulator.application(),
            access_log=None,
            handler_cancellation=True,  # a client that leaves ends its handler, which takes its request out of the engine
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=FAREWELL_S,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, config.host, config.port, backlog=BACKLOG)
            await site.start()
            host, port = runner.addresses[0][:2]
            _say(f"serving {config.names[0]} at http://{host}:{port}")
            gc.freeze()  # what is here now stays; a collection need not look at it again
            await stop.wait()
            await _drain(emulator, config.shutdown_timeout_s)
        finally:
            await runner.cleanup()


async def _drain(emulator: EmulatorApp, timeout_s: float) -> None:
    """In-flight requests may finish within the timeout; then, or at once where it is 0, they are aborted.

    The listener stays open meanwhile and /health stays 200; a new request is answered with `finish_reason: abort`.
    """
    emulator.draining = True
    if timeout_s > 0.0:
        _say(f"draining {emulator.engine.in_flight} requests for at most {timeout_s:g} s")
        await emulator.engine.empty(timeout_s)
    emulator.engine.abort_all()


async def _stopped(stop: asyncio.Event, within_s: float) -> bool:
    if within_s > 0.0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), within_s)
    return stop.is_set()


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT stops, the second one ends the process there and then."""

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _parent(pid: int | None, stop: asyncio.Event) -> Iterator[None]:
    """Ends the process when `pid` is gone, however it died: an engine must not outlive the fleet that started it."""
    if pid is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def gone() -> None:
        _say(f"process {pid} is gone; so am I")
        os._exit(1)

    try:
        pidfd = os.pidfd_open(pid)
    except AttributeError:
        pidfd = -1
    except ProcessLookupError:
        gone()
    if pidfd < 0:
        poll = loop.create_task(_poll_parent(pid, gone))
        try:
            yield
        finally:
            poll.cancel()
        return
    loop.add_reader(pidfd, gone)  # readable once the process has ended, reaped or not
    try:
        yield
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def _poll_parent(pid: int, gone: Callable[[], None]) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            gone()
        await asyncio.sleep(PARENT_POLL_S)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
