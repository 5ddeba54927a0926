"""The build hook of the wheel: with MULTISLO_COMPILE=1 it compiles the modules that pyproject.toml lists, and puts the results beside
their sources in the wheel. Called by hatchling; as a program, by itself and by `make check`."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "MULTISLO_COMPILE"
CHOICES = {"": "no", "0": "no", "1": "yes", "auto": "auto"}
CACHE_VARIABLE = "MULTISLO_COMPILE_CACHE"
"""A folder that keeps what was compiled, by what it was compiled from. Unset: nothing is kept."""
KEPT_MAX = 20
"""Compiled builds in that folder, three megabytes each. The oldest go."""
LIBRARY = "multislo"
"""All compiled code is in one shared library, `multislo__mypyc`; a module's own file only points into it."""
FLAGS = ("--config-file=", "--explicit-package-bases", "--ignore-missing-imports", "--follow-imports=silent")
"""Of mypy: only what it must know. `make check` is where types are judged; a build has no stubs of other packages."""


def wished(value: str) -> str:
    """What MULTISLO_COMPILE asks for: no, yes or auto."""
    if value not in CHOICES:
        raise ValueError(f"{VARIABLE}={value!r}: must be 1 (compile), auto (compile if possible) or 0 (pure Python)")
    return CHOICES[value]


def sources(root: Path, patterns: list[str], interpreted: list[str]) -> list[str]:
    """The files that are compiled, relative to the root, in a fixed order. A pattern that fits nothing is a mistake in the list."""
    found: set[str] = set()
    for pattern in (*patterns, *interpreted):
        files = {str(path.relative_to(root)) for path in root.glob(pattern)}
        if not files:
            raise ValueError(f"pyproject.toml, hooks.custom: no file fits {pattern!r}")
        found = found - files if pattern in interpreted else found | files
    return sorted(name for name in found if not name.endswith("__init__.py"))


def compiled_into(folder: Path, root: Path) -> Path:
    """Compile in a process of its own; returns the folder that holds the libraries. Raises RuntimeError with the compiler's words."""
    command = [sys.executable, __file__, "compile", str(folder)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"compiling failed:\n{(run.stdout + run.stderr)[-3000:]}")
    return folder / "lib"


def translated(folder: Path) -> list[Any]:
    """The C code of the listed modules, in the folder, as extensions for setuptools. Exits with mypyc's words where it refuses one."""
    from mypyc.build import mypycify

    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    listed = wheel["hooks"]["custom"]
    files = sources(Path(), listed["compiled"], listed["interpreted"])
    os.environ["MYPYPATH"] = os.pathsep.join(str(Path(package).parent) for package in wheel["packages"])
    flags = [*FLAGS, f"--cache-dir={folder / 'mypy'}"]
    extensions: list[Any] = mypycify(
        [*flags, *files], debug_level="0", group_name=LIBRARY, target_dir=str(folder / "c")
    )
    return extensions


def compile_here(folder: Path) -> None:
    """Translate, then compile, or take what was compiled of the same C code before."""
    from setuptools import Distribution

    extensions = translated(folder)
    library, cache = folder / "lib", os.environ.get(CACHE_VARIABLE)
    kept = Path(cache).expanduser() / digest_of(folder / "c") if cache else None
    if kept is not None and kept.exists():
        shutil.copytree(kept, library)
        return
    command = Distribution({"name": LIBRARY, "ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(library), str(folder / "temp")
    command.ensure_finalized()
    command.run()
    if kept is not None:
        keep(library, kept)


def keep(library: Path, kept: Path) -> None:
    """A copy that is whole as soon as it is there."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".") as making:
        whole = Path(shutil.copytree(library, Path(making) / "lib"))
        with contextlib.suppress(OSError):  # Another build was quicker.
            whole.rename(kept)
    newest_first = sorted(kept.parent.glob("[!.]*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for old in newest_first[KEPT_MAX:]:
        shutil.rmtree(old, ignore_errors=True)


def digest_of(folder: Path) -> str:
    """Of the C code and of who compiles it."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    python = [sysconfig.get_config_var(name) for name in ("EXT_SUFFIX", "CFLAGS", "py_version")]
    # mypyc's own runtime library is a part of the C code that is not in the folder.
    digest = hashlib.sha256(version + json.dumps([*python, metadata.version("mypy")]).encode())
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".c", ".h")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class CompileHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"
    _folder: str | None = None

    def dependencies(self) -> list[str]:
        """What a build in an environment of its own has to install: types of other packages decide what is compiled."""
        if wished(os.environ.get(VARIABLE, "")) == "no":
            return []
        return [*self.metadata.config["dependency-groups"]["build"], *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wish = wished(os.environ.get(VARIABLE, ""))
        if wish == "no" or version == "editable":  # Compiled files beside the sources would hide every edit.
            return
        self._folder = tempfile.mkdtemp(prefix="multislo-compile-")
        try:
            library = compiled_into(Path(self._folder), Path(self.root))
        except RuntimeError as error:
            shutil.rmtree(self._folder)
            if wish == "yes":
                raise
            self.app.display_warning(f"{VARIABLE}=auto: the wheel is pure Python, since {error}")
            return
        for path in library.rglob("*.so"):
            build_data["force_include"][str(path)] = str(path.relative_to(library))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def main() -> None:
    """`compile FOLDER` is the hook's own process. `check` only translates: what mypyc refuses, `make check` tells."""
    if sys.argv[1] == "compile":
        compile_here(Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            translated(Path(folder))


if __name__ == "__main__":
    main()
