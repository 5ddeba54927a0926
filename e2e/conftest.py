"""Fixtures of the scenarios on fake nodes: one cluster for the session, a scene for each test. See README.md."""

import itertools
import os
from collections.abc import AsyncIterator, Generator, Iterator

import pytest
import pytest_asyncio

from cluster.api import Api
from cluster.binaries import NotHere
from cluster.kwok import KwokCluster, kwok_cluster
from cluster.processes import Ended
from cluster.scene import Scene, existing_cluster

NUMBERS = itertools.count(1)
CANNOT_RUN = 2
"""The exit code where this machine cannot run the suite: it never passes by skipping."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[KwokCluster]:
    """Control plane, kwok and pod processes; or, with MULTISLO_E2E_KUBECONFIG, that cluster with fake nodes added."""
    try:
        with kwok_cluster(existing_cluster()) as running:
            yield running
    except NotHere as error:
        pytest.exit(f"cannot run here: {error}", returncode=CANNOT_RUN)
    except (Ended, TimeoutError) as error:
        pytest.exit(f"the cluster did not come up: {error}", returncode=CANNOT_RUN)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def api(cluster: KwokCluster) -> AsyncIterator[Api]:
    """An administrator's access."""
    async with await Api.connect(cluster.kubeconfig) as connected:
        yield connected


@pytest_asyncio.fixture(loop_scope="session")
async def scene(cluster: KwokCluster, api: Api) -> AsyncIterator[Scene]:
    """A namespace of the test's own, cleared with all that the test added."""
    name = f"e2e-{os.getpid() % 10000}-{next(NUMBERS)}"
    await api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    own = Scene(cluster, api, name)
    try:
        yield own
    finally:
        await own.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed scenario shows its scene before it is cleared."""
    report = yield
    scene = getattr(item, "funcargs", {}).get("scene")
    if report.when == "call" and report.failed and isinstance(scene, Scene):
        report.sections.append(("the scene", scene.told()))
    return report
