"""The routers and engines of many resources as one process, for scenarios with more of them than a machine has memory for.
`python -m cluster.many_routers KUBECONFIG DIRECTORY`; started by `Scene.start_many_routers`.

For each router pod on a fake node kwok-* it runs the real gateway and the real admin listener, started with the pod's own command line,
files and token, on the pod's own address. Engine pods get a listener that answers what an idle engine answers, and serves nothing.
"""

import asyncio
import contextlib
import signal
import sys
import traceback
from pathlib import Path

from aiohttp import web

from cluster.api import Api, Object
from cluster.pod_container import CannotStart, port_of, start_of
from multislo_api.cli import manifest_at
from multislo_api.fleet import TOKEN_VARIABLE
from multislo_perf.profile import load_profile
from multislo_router.cli import router
from multislo_router.from_manifest import core_config, shell_settings
from multislo_router.shell.admin import Admin
from multislo_router.shell.gateway import Gateway

COMPONENT = "app.kubernetes.io/component"
SELECTOR = "app.kubernetes.io/part-of=multislo"
PREFIX = "kwok-"
IDLE_METRICS = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n"
RETRY_S = 1.0


class ManyRouters:
    def __init__(self, api: Api, directory: Path) -> None:
        self._api = api
        self._directory = directory
        self._serving: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        try:
            async for event, pod in self._api.watch("/api/v1/pods", labelSelector=SELECTOR):
                uid = pod["metadata"]["uid"]
                if event == "DELETED":
                    if uid in self._serving:
                        self._serving.pop(uid).cancel()
                elif uid not in self._serving and self._ours(pod):
                    self._serving[uid] = asyncio.create_task(self._serve(pod))
        finally:
            for task in self._serving.values():
                task.cancel()
            await asyncio.gather(*self._serving.values(), return_exceptions=True)

    @staticmethod
    def _ours(pod: Object) -> bool:
        return bool((pod["spec"].get("nodeName") or "").startswith(PREFIX) and pod.get("status", {}).get("podIP"))

    async def _serve(self, pod: Object) -> None:
        serve = self._router if pod["metadata"]["labels"].get(COMPONENT) == "router" else self._engine
        while True:
            try:
                await serve(pod, pod["status"]["podIP"])
            except (CannotStart, OSError) as error:
                print(f"{pod['metadata']['namespace']}/{pod['metadata']['name']}: {error}", file=sys.stderr, flush=True)
            except Exception:
                traceback.print_exc()
            await asyncio.sleep(RETRY_S)

    async def _router(self, pod: Object, ip: str) -> None:
        directory = self._directory / pod["metadata"]["namespace"] / pod["metadata"]["name"]
        (container,) = pod["spec"]["containers"]
        start = await start_of(self._api, pod, container, ip, directory)
        options = router.make_context("router", start.command[2:]).params  # The very parser of `multislo router`.
        manifest = manifest_at(options["manifest_path"])
        config = core_config(manifest, load_profile(options["profile_name"]))
        settings = shell_settings(manifest)
        gateway = Gateway(config, settings)
        token = start.environment.get(TOKEN_VARIABLE)
        admin = Admin(gateway, model=settings.served_names[0], placement=config.placement.value, token=token)
        runner = web.AppRunner(admin.application(), access_log=None)
        try:
            await runner.setup()
            await web.TCPSite(
                runner, options["admin_host"], options["admin_port"] or manifest.spec.router.admin_port
            ).start()
            await gateway.start(options["host"], options["port"] or manifest.spec.router.port)
            await asyncio.Event().wait()
        finally:
            await gateway.shutdown(0.0)
            await runner.cleanup()

    async def _engine(self, pod: Object, ip: str) -> None:
        async def fine(request: web.Request) -> web.Response:
            return web.Response(text=IDLE_METRICS if request.path == "/metrics" else "{}")

        app = web.Application()
        app.add_routes([web.get(path, fine) for path in ("/health", "/metrics", "/v1/models")])
        runner = web.AppRunner(app, access_log=None)
        try:
            await runner.setup()
            await web.TCPSite(runner, ip, port_of(pod["spec"]["containers"][0], "http")).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


async def main(kubeconfig: str, directory: str) -> None:
    loop, own = asyncio.get_running_loop(), asyncio.current_task()
    assert own is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, own.cancel)
    async with await Api.connect(kubeconfig) as api:
        with contextlib.suppress(asyncio.CancelledError):
            await ManyRouters(api, Path(directory)).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
