"""`multislo operator`."""

import asyncio
import json
import logging
import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from multislo_operator.kubernetes.own_key import KEY_BYTES_MIN
from multislo_operator.kubernetes.run import CannotStart, RunSettings, run

LOG = logging.getLogger(__name__)
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@click.command("operator", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the secret from which the routers' tokens are derived, the same for all replicas; 16 bytes or more. "
    "Default: a random one, with which the routers are rolled at each start.",
)
@click.option(
    "--key-secret",
    metavar="NAME",
    help="Instead of --key-file: a Secret of the Lease's namespace with that key. It is made where there is none.",
)
@click.option("--keep-key", is_flag=True, help="The Secret that is made does not go with --own-deployment.")
@click.option(
    "--own-deployment",
    metavar="NAME",
    help="The operator's own Deployment, in the Lease's namespace: its Lease and its key go with it. Default: they stay.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of /metrics, /healthz and /readyz.")
@click.option("--metrics-port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Their port.")
@click.option(
    "--namespace", "namespaces", multiple=True, metavar="NS", help="Look after this namespace alone. May be repeated."
)
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Default: KUBECONFIG, else the pod that this is, else ~/.kube/config.",
)
@click.option("--lease-namespace", metavar="NS", help="Where the Lease is. Default: POD_NAMESPACE, else the pod's own.")
@click.option("--no-election", is_flag=True, help="Lead without asking: for a single replica.")
@click.option(
    "--image", envvar="MULTISLO_IMAGE", help="Image of routers and emulated engines. Default: MULTISLO_IMAGE."
)
@click.option(
    "--monitoring-namespace",
    metavar="NS",
    help="Where Prometheus runs; it alone may read the metrics of routers and engines.",
)
@click.option(
    "--pod-monitor-label",
    "monitor_labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="Put on the PodMonitors of fleets, for a Prometheus that looks for it. May be repeated.",
)
@click.option(
    "--image-pull-policy",
    type=click.Choice(["IfNotPresent", "Always", "Never"]),
    default="IfNotPresent",
    show_default=True,
    help="Of routers and emulated engines.",
)
@click.option(
    "--pod-users",
    type=click.Choice(["auto", "fixed", "cluster"]),
    default="auto",
    show_default=True,
    help="Who gives vLLM's pods their user and group: fixed (2000 and 0, since vLLM's image starts as root), cluster "
    "(they name none), or auto (the cluster where it is OpenShift).",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def operator(
    key_file: Path | None,
    key_secret: str | None,
    keep_key: bool,
    own_deployment: str | None,
    host: str,
    metrics_port: int,
    namespaces: tuple[str, ...],
    kubeconfig: Path | None,
    lease_namespace: str | None,
    no_election: bool,
    image: str | None,
    monitoring_namespace: str | None,
    monitor_labels: tuple[str, ...],
    image_pull_policy: str,
    pod_users: str,
    log_format: str,
) -> None:
    """Look after the MultiSLOServing resources of a Kubernetes cluster.

    Exit codes: 0 stopped by SIGTERM, 1 it cannot start (no API server, no CRD, no right), 2 wrong use.
    """
    _log(log_format)
    if not image:
        raise click.UsageError("--image: missing; must be the image of this operator (or set MULTISLO_IMAGE)")
    if key_file is not None and key_secret is not None:
        raise click.UsageError("--key-file and --key-secret: give one of them")
    key = b"" if key_secret is not None else _key(key_file)
    settings = RunSettings(
        key=key,
        image=image,
        host=host,
        metrics_port=metrics_port,
        namespaces=namespaces,
        kubeconfig=kubeconfig,
        lease_namespace=lease_namespace or _own_namespace(),
        election=not no_election,
        monitoring_namespace=monitoring_namespace,
        monitor_labels=tuple(_label(text) for text in monitor_labels),
        image_pull_policy=image_pull_policy,
        pod_users=pod_users,
        key_secret=key_secret,
        key_kept=keep_key,
        own_deployment=own_deployment,
    )
    try:
        asyncio.run(run(settings))
    except CannotStart as error:
        LOG.error("%s", error)
        sys.exit(1)


def _key(path: Path | None) -> bytes:
    if path is None:
        LOG.warning("no --key-file: the routers get new tokens, and are rolled, at each start of the operator")
        return secrets.token_bytes(32)
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise click.UsageError(f"--key-file: {path}: {error.strerror}") from None
    if len(key) < KEY_BYTES_MIN:
        raise click.UsageError(f"--key-file: {path} holds {len(key)} bytes; must be at least {KEY_BYTES_MIN}")
    return key


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.UsageError(f'--pod-monitor-label: "{text}" must be KEY=VALUE')
    return key, value


def _own_namespace() -> str:
    named = os.environ.get("POD_NAMESPACE")
    if named:
        return named
    try:
        return _POD_NAMESPACE.read_text().strip()
    except OSError:
        return "default"


def _log(format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonLines() if format == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("multislo_operator.kubernetes."),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
