"""Fixtures of the scenarios on a real node: one cluster for the session, a scene for each test, as in the folder above.

    async def test_(scene: Scene, node_cluster: NodeCluster): ...

`scene.apply` takes manifests with `node_cluster.image`; `node_cluster.open_service` leads to a Service from here.
"""

import os
from collections.abc import Iterator

import pytest

from cluster.binaries import NotHere
from cluster.node import NodeCluster
from cluster.node import node_cluster as started
from cluster.node_network import Traces, nothing_left
from cluster.processes import Ended
from cluster.scene import existing_cluster

CANNOT_RUN = 2
"""The exit code where this machine cannot run the suite: it never passes by skipping."""


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[NodeCluster]:
    """At the end of the session it fails with whatever the node left on this machine."""
    try:
        with nothing_left(Traces.seen()), started(existing_cluster()) as running:
            yield running
    except NotHere as error:
        pytest.exit(f"cannot run here: {error}", returncode=CANNOT_RUN)
    except (Ended, TimeoutError) as error:
        pytest.exit(f"the cluster did not come up, or did not go: {error}", returncode=CANNOT_RUN)


@pytest.fixture(scope="session")
def cluster(node_cluster: NodeCluster) -> NodeCluster:
    """What `api` and `scene` of the folder above stand on."""
    return node_cluster


@pytest.fixture(scope="session", autouse=True)
def _checkout_of_root() -> None:
    """git refuses a checkout of another user, as CI's may be."""
    os.environ.update(GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*")
