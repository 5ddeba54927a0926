"""Fixtures of the scenarios on fake nodes: one cluster for the session, a scene for each test. See README.md."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from cluster.api import Api
from cluster.binaries import NotHere
from cluster.kwok import KwokCluster, keep, kwok_cluster, show_logs
from cluster.processes import Ended
from cluster.scene import Scene, existing_cluster

NUMBERS = itertools.count(1)
CANNOT_RUN = 2
"""The exit code where this machine cannot run the suite: it never passes by skipping."""


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[KwokCluster]:
    """Control plane, kwok and pod processes; or, with MULTISLO_E2E_KUBECONFIG, that cluster with fake nodes added."""
    try:
        with kwok_cluster(existing_cluster()) as running:
            yield running
            kept = keep(running.directory)
            if request.session.testsfailed and kept is None:
                show_logs(running.directory)
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
