"""The programs of a cluster, built from go.mod once, into a cache outside the checkout; and what a node needs of Debian's packages.
Called by whatever starts a cluster; `python -m cluster build` does this alone.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
KUBERNETES = "v1.36.3"
"""As go.mod says; what the programs call themselves by."""
VERSION = "k8s.io/component-base/version"
MAJOR, MINOR, _ = KUBERNETES.removeprefix("v").split(".")
KUBE_FLAGS = f"-s -w -X {VERSION}.gitVersion={KUBERNETES} -X {VERSION}.gitMajor={MAJOR} -X {VERSION}.gitMinor={MINOR}"
TOOLS = {"kwok": "sigs.k8s.io/kwok/cmd/kwok", "etcd": "go.etcd.io/etcd/server/v3"}
NAMES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
SHOWN_LINES = 25
"""Of what a failed command printed."""


class NotHere(Exception):
    """This machine lacks something that a cluster needs. The message says what, and how to get it; callers exit with 2."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where the programs are: Kubernetes' own by their usual names, etcd and kwok. On a PATH the folder gives kubectl too."""

    directory: Path

    def __getitem__(self, name: str) -> str:
        return str(self.directory / name)


def cache() -> Path:
    chosen = os.environ.get("MULTISLO_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "multislo" / "e2e"


def binaries() -> Binaries:
    """Built when go.mod or main.go is new: 6 minutes on two cores from nothing, a hundredth of a second the next time."""
    sources = [HERE / name for name in ("go.mod", "go.sum", "main.go")]
    digest = hashlib.sha256(
        b"".join(path.read_bytes() for path in sources) + f"{KUBE_FLAGS}{TOOLS}{NAMES}".encode()
    ).hexdigest()[:12]
    made = cache() / digest
    with _made_once(made) as making:
        if making is not None:
            _say(f"building Kubernetes, etcd and kwok from source, once: 6 minutes on two cores; kept in {made}")
            _build(making)
    return Binaries(made)


def _build(making: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise NotHere("go is not on PATH: install Go 1.26 or newer, it builds Kubernetes from source")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    build = [go, "build", "-trimpath"]
    _run([*build, "-ldflags", KUBE_FLAGS, "-o", str(making / "kubernetes"), "."], HERE, environment)
    for name in NAMES:
        (making / name).symlink_to("kubernetes")
    for name, package in TOOLS.items():
        _run([*build, "-ldflags", "-s -w", "-o", str(making / name), package], HERE, environment)


def debian(package: str) -> Path:
    """The files of a Debian package, unpacked in the cache. Raises NotHere."""
    made = cache() / "debian" / package
    with _made_once(made) as making:
        if making is not None:
            if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
                raise NotHere(f"{package}: this is no Debian or Ubuntu; put its program on PATH")
            _say(f"fetching {package}")
            _download(package, making)
            for archive in making.glob("*.deb"):
                _run(["dpkg", "-x", str(archive), str(making)], making)
                archive.unlink()
    return made


def _download(package: str, directory: Path) -> None:
    command = ["apt-get", "download", "-q", package]
    try:
        _run(command, directory)
    except NotHere:
        if os.geteuid() != 0:  # Only root may fetch the lists that apt found missing or old.
            raise
        _run(["apt-get", "update", "-q"], directory)
        _run(command, directory)


def _run(command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        shown = "\n".join(done.stdout.splitlines()[-SHOWN_LINES:])
        raise NotHere(f"`{' '.join(command)}` failed with exit code {done.returncode}:\n{shown}")


@contextmanager
def _made_once(made: Path) -> Iterator[Path | None]:
    """A folder to fill where `made` is not there yet, else None; it becomes `made` only when it is whole. One at a time makes it."""
    if made.exists():
        yield None
        return
    made.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{made}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            yield None
            return
        making = Path(tempfile.mkdtemp(prefix=f"{made.name}.making-", dir=made.parent))
        making.chmod(0o755)
        try:
            yield making
            making.rename(made)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
