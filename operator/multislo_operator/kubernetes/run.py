"""The operator's process: connects, watches, stands for election, reconciles while it leads, serves its metrics. Called by `cli`.

Both replicas watch, so that a new leader begins with a warm cache; the leader alone reconciles and speaks to routers.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from multislo_operator.kubernetes.cache import DEPLOYMENT, RESOURCE, Cache
from multislo_operator.kubernetes.claims import Claims
from multislo_operator.kubernetes.client import Api, ApiError, Kind, NotFound, Refused, Unreachable, connect
from multislo_operator.kubernetes.events import Events
from multislo_operator.kubernetes.lease import Election
from multislo_operator.kubernetes.metrics import OperatorMetrics
from multislo_operator.kubernetes.names import GROUP, KIND, LEASE, PLURAL
from multislo_operator.kubernetes.own_key import KeyUnusable, own_key
from multislo_operator.kubernetes.reconcile import OperatorSettings, reconcile
from multislo_operator.kubernetes.reconciler import LEADING_S, Reconcile, Reconciler, Shared
from multislo_operator.kubernetes.watch import POD_MONITOR, Watches
from multislo_operator.kubernetes.wire import Json

LOG = logging.getLogger(__name__)
MONITORS_AGAIN_S = 300.0
ROUTER_CONNECTIONS = 512
CONNECT_PATIENCE_S = 60.0
"""How long the API server may be away when the operator starts."""
SECURITY_CONSTRAINTS = Kind("security.openshift.io/v1", "SecurityContextConstraint")
"""OpenShift's; they give each namespace a range of users, and refuse all others."""


class CannotStart(Exception):
    """What the user has to mend, in words."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the command line says. `namespaces`: none for the whole cluster."""

    key: bytes
    """Empty: it is in `key_secret`."""
    image: str
    host: str
    metrics_port: int
    namespaces: tuple[str, ...]
    kubeconfig: Path | None
    lease_namespace: str
    election: bool
    monitoring_namespace: str | None = None
    monitor_labels: tuple[tuple[str, str], ...] = ()
    image_pull_policy: str = "IfNotPresent"
    pod_users: str = "auto"
    """Who gives vLLM's pods their user: fixed (we), cluster, or auto (the cluster where it is OpenShift)."""
    key_secret: str | None = None
    """In the Lease's namespace; made where there is none."""
    key_kept: bool = False
    """It does not go with the operator's Deployment."""
    own_deployment: str | None = None
    """In the Lease's namespace: what the operator makes for itself goes with it."""
    owners: tuple[Json, ...] = ()
    """References to it; found at the start."""


class Operator:
    def __init__(self, settings: RunSettings, api: Api, reconcile: Reconcile = reconcile) -> None:
        self._settings = settings
        self._api = api
        self._registry = CollectorRegistry()
        self._metrics = OperatorMetrics(self._registry)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        api.wrote = self._metrics.wrote
        self._cache = Cache()
        self._watches = Watches(api, self._cache, settings.namespaces, self._metrics.watch_failed)
        self._operator_settings = OperatorSettings(
            key=settings.key,
            image=settings.image,
            namespace=settings.lease_namespace,
            version=version("multislo"),
            monitoring_namespace=settings.monitoring_namespace,
            monitor_labels=settings.monitor_labels,
            image_pull_policy=settings.image_pull_policy,
        )
        self._identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}_{secrets.token_hex(4)}"
        # With connections of its own: a renewal must not wait behind a new leader's hundreds of writes.
        self._lease_api = api.another()
        own = Election(self._lease_api, settings.lease_namespace, self._identity, owners=settings.owners)
        self._election = own if settings.election else None
        installation = f"{settings.lease_namespace}/{LEASE}" if settings.election else self._identity
        home = settings.lease_namespace
        self._claims = Claims(self._lease_api, installation, home, settings.owners, lets_go=not settings.election)
        self._reconcile = reconcile
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises CannotStart."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        try:
            await self._check_kind()
            await self._look_for_users()
            async with self._admin(), self._session() as session, asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watches.run(), name="watches")
                looking = tasks.create_task(self._look_for_monitors(), name="monitors")
                leading = tasks.create_task(self._lead(session), name="lead")
                await self._stop.wait()
                LOG.info("stopping")
                leading.cancel()
                await asyncio.wait([leading])
                watching.cancel()
                looking.cancel()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            await self._lease_api.close()
            await self._api.close()

    # -- leading ---------------------------------------------------------------------------------------------------------------

    async def _lead(self, session: aiohttp.ClientSession) -> None:
        """Reconcile whenever this replica leads. The Lease is let go last, when nothing is written any more."""
        await self._watches.synced()
        LOG.info("the cache is complete: %d %s", len(self._cache.resources), PLURAL)
        election = self._election
        electing = None if election is None else asyncio.create_task(election.run(), name="election")
        try:
            while True:
                if self._leads():
                    self._metrics.leading(True)
                    reconciler = Reconciler(self._shared(session))
                    self._cache.wake = reconciler.wake
                    claiming = asyncio.create_task(self._claims.run(self._namespaces), name="claims")
                    try:
                        await reconciler.run()
                    finally:
                        self._cache.wake = lambda key: None
                        self._metrics.leading(False)
                        claiming.cancel()
                        await asyncio.wait([claiming])
                # Leadership goes by the clock, and may be back before anybody has noticed: it is asked for, not waited for.
                await asyncio.sleep(LEADING_S)
        finally:
            if electing is not None:
                electing.cancel()
                await asyncio.wait([electing])

    def _namespaces(self) -> set[str]:
        """That have fleets."""
        return {key.namespace for key in self._cache.resources}

    def _leads(self) -> bool:
        return self._election is None or self._election.leading()

    def _shared(self, session: aiohttp.ClientSession) -> Shared:
        return Shared(
            self._api,
            self._cache,
            session,
            self._metrics,
            Events(self._api, self._identity, time.monotonic),
            self._reconcile,
            lambda: self._operator_settings,
            self._leads,
            self._claims,
        )

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        """To the routers: connections are kept between looks."""
        connector = aiohttp.TCPConnector(limit=ROUTER_CONNECTIONS, keepalive_timeout=30.0)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield session

    # -- the cluster -----------------------------------------------------------------------------------------------------------

    async def _check_kind(self) -> None:
        """The API server answers, and knows our kind."""
        namespace = self._settings.namespaces[0] if self._settings.namespaces else None
        until = time.monotonic() + CONNECT_PATIENCE_S
        while True:
            try:
                await self._api.list(RESOURCE, namespace, metadata_only=True)
                return
            except NotFound:
                raise CannotStart(
                    f"the cluster at {self._api.host} does not know the kind {KIND} ({GROUP}): install the multislo-crds chart "
                    f"first (the CustomResourceDefinition is {PLURAL}.{GROUP})"
                ) from None
            except Refused as error:
                raise CannotStart(f"{PLURAL} cannot be listed at {self._api.host}: {error}") from None
            except ApiError as error:
                if time.monotonic() >= until or self._stop.is_set():
                    raise CannotStart(f"the API server at {self._api.host} does not answer: {error}") from None
                LOG.warning("the API server does not answer yet: %s", error)
                await asyncio.sleep(2.0)

    async def _look_for_users(self) -> None:
        """Before anything is made: what is found later would roll every engine."""
        assigned = self._settings.pod_users == "cluster"
        if self._settings.pod_users == "auto":
            try:
                assigned = await self._has(SECURITY_CONSTRAINTS)
            except Refused as error:
                LOG.warning("whether this is OpenShift cannot be seen, and is taken for no (--pod-users): %s", error)
            except ApiError as error:
                raise CannotStart(f"the APIs of {self._api.host} cannot be listed: {error}") from None
        if assigned:
            LOG.info("the cluster gives pods their user and group")
        self._operator_settings = replace(self._operator_settings, users_assigned=assigned)

    async def _look_for_monitors(self) -> None:
        """Whether this cluster has PodMonitors may change while the operator runs."""
        while True:
            try:
                there = await self._has(POD_MONITOR)
                if there is not self._operator_settings.monitors:
                    LOG.info("PodMonitors are %s", "there" if there else "not there")
                    self._operator_settings = replace(self._operator_settings, monitors=there)
            except ApiError as error:
                LOG.debug("the APIs cannot be listed: %s", error)
            await asyncio.sleep(MONITORS_AGAIN_S)

    async def _has(self, kind: Kind) -> bool:
        try:
            return kind.plural in await self._api.plurals(kind.api_version)
        except NotFound:
            return False

    # -- the admin listener ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[None]:
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._get_metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, self._settings.host, self._settings.metrics_port).start()
            except OSError as error:
                where = f"{self._settings.host}:{self._settings.metrics_port}"
                raise CannotStart(f"--metrics-port: {where}: {error.strerror or error}") from None
            LOG.info("metrics at http://%s:%d/metrics", *runner.addresses[0][:2])
            yield
        finally:
            await runner.cleanup()

    async def _get_metrics(self, request: web.Request) -> web.Response:
        # A tenth of a second at 200 fleets: not on the event loop.
        body = await asyncio.to_thread(generate_latest, self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, request: web.Request) -> web.Response:
        """That this answers is the event loop's sign of life. An API server that is away is no reason to be restarted."""
        stuck = self._watches.stuck(time.monotonic())
        if stuck:
            return web.Response(status=503, text=f"no sign of life from the watch of {', '.join(stuck)}\n")
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        if not self._watches.ready():
            return web.Response(status=503, text="the cache is not complete yet\n")
        return web.Response(text="ok, leads\n" if self._leads() else "ok, stands by\n")


async def run(settings: RunSettings) -> None:
    """Raises CannotStart."""
    try:
        api = await connect(settings.kubeconfig)
    except ApiError as error:
        raise CannotStart(str(error)) from None
    try:
        settings = await _with_its_own(api, settings)
    except (ApiError, KeyUnusable) as error:
        await api.close()
        raise CannotStart(str(error)) from None
    await Operator(settings, api).run()


async def _with_its_own(api: Api, settings: RunSettings) -> RunSettings:
    """With the key, and with what it goes with. Raises ApiError, KeyUnusable."""
    until = time.monotonic() + CONNECT_PATIENCE_S
    while True:
        try:
            owners = await _owners(api, settings)
            key = settings.key
            if settings.key_secret is not None:
                kept = () if settings.key_kept else owners
                key = await own_key(api, settings.lease_namespace, settings.key_secret, kept)
            return replace(settings, key=key, owners=owners)
        except Unreachable as error:
            if time.monotonic() >= until:
                raise
            LOG.warning("the API server does not answer yet: %s", error)
            await asyncio.sleep(2.0)


async def _owners(api: Api, settings: RunSettings) -> tuple[Json, ...]:
    if settings.own_deployment is None:
        return ()
    own = await api.get(DEPLOYMENT, settings.lease_namespace, settings.own_deployment)
    named = {"name": own["metadata"]["name"], "uid": own["metadata"]["uid"]}
    return ({"apiVersion": DEPLOYMENT.api_version, "kind": DEPLOYMENT.name, **named},)
