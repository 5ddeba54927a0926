"""The programs of a cluster: built from go.mod, or fetched from the distribution, once, into a cache outside the checkout.
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
NAMES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
SHOWN_LINES = 25
"""Of what a failed command printed."""


class NotHere(Exception):
    """This machine lacks something that a cluster needs. The message says what, and how to get it; callers exit with 2."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where the programs are. `directory` holds Kubernetes' own by their usual names and kwok: put it on a PATH to use kubectl."""

    directory: Path
    etcd: Path

    def __getitem__(self, name: str) -> str:
        return str(self.etcd if name == "etcd" else self.directory / name)


def cache() -> Path:
    chosen = os.environ.get("MULTISLO_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "multislo" / "e2e"


def binaries() -> Binaries:
    """All programs, got where they are not there yet: 7 minutes on two cores from nothing, a hundredth of a second the next time."""
    return Binaries(kubernetes(), etcd())


def kubernetes() -> Path:
    """The folder of Kubernetes' programs and kwok; built when go.mod or main.go is new."""
    sources = [HERE / name for name in ("go.mod", "go.sum", "main.go")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + KUBE_FLAGS.encode()).hexdigest()[:12]
    made = cache() / digest
    with _made_once(made) as making:
        if making is not None:
            go = shutil.which("go")
            if go is None:
                raise NotHere("go is not on PATH: install Go 1.26 or newer, it builds Kubernetes from source")
            _say("building Kubernetes and kwok from source, once: 7 minutes on two cores; kept in", str(made))
            run = _go(making, HERE)
            run([go, "build", "-trimpath", "-ldflags", KUBE_FLAGS, "-o", str(making / "kubernetes"), "."])
            run([go, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(making / "kwok"), "sigs.k8s.io/kwok/cmd/kwok"])
            for name in NAMES:
                (making / name).symlink_to("kubernetes")
    return made


def etcd() -> Path:
    """That on the PATH; else the distribution's, unpacked into the cache: not installed, so no service is started."""
    found = shutil.which("etcd")
    if found:
        return Path(found)
    return debian("etcd-server") / "usr" / "bin" / "etcd"


def debian(package: str) -> Path:
    """The files of a Debian package, unpacked in the cache. Raises NotHere."""
    made = cache() / "debian" / package
    with _made_once(made) as making:
        if making is not None:
            if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
                raise NotHere(f"{package}: this is no Debian or Ubuntu; put its program on PATH")
            _say("fetching", package)
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


def _go(making: Path, directory: Path):  # type: ignore[no-untyped-def]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    return lambda command: _run(command, directory, environment)


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


def _say(*words: str) -> None:
    print(*words, file=sys.stderr, flush=True)
