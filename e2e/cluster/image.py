"""The product's image, built from the real Dockerfile with no registry at hand, and a store of it that a node starts from. Called by
node.py; `python -m cluster.image` builds it alone.

buildah carries the Dockerfile out as it stands. Only its BASE and BUILD_BASE are made here: a minimal Debian with Python, and one with a
compiler, from Debian's packages, where the default would come from a registry.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.binaries import HERE, NotHere, cache, debian
from cluster.processes import say

CHECKOUT = HERE.parents[1]
SOURCES = (
    ".dockerignore", "Dockerfile", "LICENSE", "README.md",
    "pyproject.toml", "hatch_build.py", "requirements.lock", "requirements-build.lock",
    "bench", "cli", "crds", "engine", "operator", "profiles", "router", "simulator",
)  # fmt: skip
IMAGE = "localhost/multislo:e2e"
EARLIER = "localhost/multislo:earlier"
BASE = "localhost/multislo-base"
PAUSE = "localhost/pause:1"
BUILD_BASE = "localhost/multislo-build-base"
PACKAGES = {
    BASE: ("python3", "python3-venv", "ca-certificates"),
    BUILD_BASE: ("python3", "python3-venv", "python3-dev", "ca-certificates", "gcc", "libc6-dev"),
}
"""Of the images that the Dockerfile's stages start from."""
EMPTY_OF = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
STORES_KEPT = 2
"""A store has a gigabyte. The one before the newest is kept for who goes back and forth between two commits."""
CHANGED_IN_PLACE = ("meta.db", "metadata.db")
"""Of a containerd root; every other file of it is written once."""
SHOWN_LINES = 25
TRUST = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
"""What a build borrows of this machine where it is there: whom to trust, and pip's settings."""


def image_store() -> Path:
    """A folder that is a containerd root with the product's image and the pause image unpacked. Made when the sources are new.

    Measured on two cores: 0.1 s when nothing changed; 20 s when only our own code did; 1.5 min when nothing is there yet.
    """
    stores = cache() / "image-stores"
    stores.mkdir(parents=True, exist_ok=True)
    with _alone(stores / "lock"):
        store = stores / sources_digest()
        if not store.exists():
            say(f"building the image {IMAGE} from the Dockerfile")
            _make(store)
        os.utime(store)
        for old in _stores(stores)[:-STORES_KEPT]:
            shutil.rmtree(old)
    return store


def clone(store: Path, root: Path) -> None:
    """A second containerd root in a second: its files are links to the store's, but for the few that containerd writes again."""
    root.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["cp", "-al", str(store), str(root)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotHere(f"cannot link {root} to {store}: {done.stderr.strip()[-500:]}")
    for name in CHANGED_IN_PLACE:
        for link in root.glob(f"io.containerd.*/{name}"):
            link.unlink()
            shutil.copyfile(store / link.relative_to(root), link)


def _stores(folder: Path) -> list[Path]:
    """The oldest first."""
    return sorted(
        (path for path in folder.iterdir() if path.is_dir() and path.suffix != ".making"),
        key=lambda s: s.stat().st_mtime,
    )


def sources_digest() -> str:
    """Of everything that the image depends on: git's own files alone, so that an editor's leavings change nothing."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES],
        cwd=CHECKOUT, capture_output=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        raise NotHere(f"the image is built from a git checkout: {listed.stderr.decode(errors='replace').strip()}")
    digest = hashlib.sha256(Path(__file__).read_bytes() + (HERE / "pause.c").read_bytes())
    for name in sorted(set(listed.stdout.decode().split("\0")) - {""}):
        with contextlib.suppress(FileNotFoundError):  # Deleted, not yet committed.
            digest.update(f"{name}\0".encode() + (CHECKOUT / name).read_bytes())
    return digest.hexdigest()[:12]


def _make(store: Path) -> None:
    making = Path(f"{store}.making")
    shutil.rmtree(making, ignore_errors=True)
    # From the newest one: of a new image only the layers that it has not yet are unpacked.
    earlier = _stores(store.parent)
    if earlier:
        clone(earlier[-1], making)
    making.mkdir(exist_ok=True)
    try:
        product, pause = making / "product.tar", making / "pause.tar"
        _build_product(product)
        _build_pause(pause)
        with _containerd(making) as ctr:
            if earlier:
                # Under another name it holds the layers that both have: nothing else does between its fall and the new one's rise.
                _run([*ctr, "images", "tag", "--force", IMAGE, EARLIER])
            for archive in (pause, product):
                _run([*ctr, "images", "import", str(archive)])
            if earlier:
                _run([*ctr, "images", "rm", "--sync", EARLIER])
        for leftover in (product, pause, making / "containerd.log"):
            leftover.unlink()
        shutil.rmtree(making / "state", ignore_errors=True)
        making.rename(store)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _build_product(archive: Path) -> None:
    buildah = Buildah.create()
    for base, packages in PACKAGES.items():
        if not buildah.has(base):
            say(f"making {base} from Debian's packages, once: half a minute")
            _build_base(buildah, base, packages)
    lent = [flag for path in TRUST if Path(path).exists() for flag in ("--volume", f"{path}:{path}:ro")]
    buildah.run(
        "bud", "--isolation", "chroot", "--layers", *lent, "--build-arg", f"BASE={BASE}", "--build-arg", f"BUILD_BASE={BUILD_BASE}",
        "--tag", IMAGE, str(CHECKOUT),
    )  # fmt: skip
    archive.unlink(missing_ok=True)
    buildah.run("push", IMAGE, f"docker-archive:{archive}:{IMAGE}")
    buildah.forget_old_layers()


def _build_base(buildah: "Buildah", base: str, packages: Sequence[str]) -> None:
    codename = _release()["VERSION_CODENAME"]
    folder = buildah.root / "base"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        _run(
            ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(packages)}", "--aptopt=Acquire::Languages none",
             *(f"--dpkgopt=path-exclude={path}" for path in EMPTY_OF), codename, str(folder / "root.tar")],
        )  # fmt: skip
        (folder / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
        buildah.run("bud", "--isolation", "chroot", "--tag", base, str(folder))
    finally:
        shutil.rmtree(folder)


class Buildah:
    """buildah with a store and settings of our own: nothing of it touches another's images."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(root / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(root / "registries.conf"),
            "TMPDIR": str(root),
        }

    @classmethod
    def create(cls) -> "Buildah":
        if shutil.which("buildah") is None or shutil.which("mmdebstrap") is None:
            raise NotHere(
                "apt-get install --no-install-recommends buildah mmdebstrap (they build the image; no service starts)"
            )
        root = cache() / "buildah"
        root.mkdir(parents=True, exist_ok=True)
        where = f'graphroot = "{root / "storage"}"\nrunroot = "{root / "run"}"\n'
        (root / "storage.conf").write_text(f'[storage]\ndriver = "overlay"\n{where}')
        (root / "registries.conf").write_text("")  # A name that is not here is a mistake, not a reason to go out.
        (root / "policy.json").write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        return cls(root)

    def run(self, command: str, *arguments: str) -> str:
        policy = ["--signature-policy", str(self.root / "policy.json")] if command in ("bud", "push") else []
        return _run(["buildah", command, *policy, *arguments], self._environment)

    def has(self, image: str) -> bool:
        return bool(self.run("images", "--quiet", "--filter", f"reference={image}").strip())

    def forget_old_layers(self) -> None:
        """Images that no name points to and that the build just made did not use: hundreds pile up in a week of work.

        Intermediate layers are such images too, so only what is older than a day goes.
        """
        before = time.time() - 86_400
        images = json.loads(self.run("images", "--all", "--json") or "[]")
        for old in (i for i in images if not i.get("names") and i.get("created", before) < before):
            with contextlib.suppress(NotHere):  # Another layer stands on it.
                self.run("rmi", old["id"])


def _build_pause(archive: Path) -> None:
    """An archive of the image of a pod's sandbox: one static program that waits."""
    program = archive.with_suffix(".bin")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NotHere("cc is not on PATH (package gcc): it compiles the program that holds a pod's network")
    _run([compiler, "-Os", "-static", "-s", "-o", str(program), str(HERE / "pause.c")])
    layer = _tar({"pause": program.read_bytes()})
    program.unlink()
    settings = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE], "Layers": ["layer.tar"]}]
    files = {"config.json": json.dumps(settings), "manifest.json": json.dumps(manifest)}
    archive.write_bytes(_tar({"layer.tar": layer, **{name: text.encode() for name, text in files.items()}}))


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@contextlib.contextmanager
def _containerd(root: Path) -> Iterator[Sequence[str]]:
    """A containerd that only keeps images; gives the words that a `ctr` command begins with."""
    programs = debian("containerd") / "usr/bin"
    state, log = root / "state", root / "containerd.log"
    socket = state / "containerd.sock"
    state.mkdir()
    (state / "config.toml").write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    with log.open("wb") as out:
        server = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", str(programs / "containerd"), "--config", str(state / "config.toml"),
             "--root", str(root), "--state", str(state), "--address", str(socket)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    ctr = [str(programs / "ctr"), "--address", str(socket), "--namespace", "k8s.io"]
    try:
        for _ in range(100):
            if socket.exists() and subprocess.run([*ctr, "version"], capture_output=True, check=False).returncode == 0:
                break
            if server.poll() is not None:
                raise NotHere(f"containerd does not run here:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield ctr
    finally:
        server.terminate()
        server.wait()


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        shown = "\n".join((done.stdout + done.stderr).splitlines()[-SHOWN_LINES:])
        raise NotHere(f"`{' '.join(command)}` failed with exit code {done.returncode}:\n{shown}")
    return done.stdout


def _release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    began = time.monotonic()
    try:
        print(image_store())
    except NotHere as error:
        say(f"cannot run here: {error}")
        sys.exit(2)
    say(f"{time.monotonic() - began:.1f} s")
