"""The compiled build: who asks for it gets it, and it decides what the pure one decides. `make test-compiled` runs the second part."""

import os
import subprocess
import sys
import tomllib
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from multislo.command import main
from multislo_router.build import build

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
ROOTS = [str((ROOT / package).parent) for package in WHEEL["packages"]]
only_compiled = pytest.mark.skipif(
    os.environ.get("MULTISLO_BUILD") != "compiled", reason="needs the compiled build: make test-compiled"
)


def hook() -> ModuleType:
    spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled_files() -> list[str]:
    listed = WHEEL["hooks"]["custom"]
    files: list[str] = hook().sources(ROOT, listed["compiled"], listed["interpreted"])
    return files


def test_the_version_names_the_build() -> None:
    result = CliRunner().invoke(main, ["--version"])

    assert result.output == f"multislo {PROJECT['project']['version']} ({build()})\n"


@pytest.mark.parametrize(("value", "wish"), [("", "no"), ("0", "no"), ("1", "yes"), ("auto", "auto")])
def test_a_build_is_compiled_where_the_environment_says_so(value: str, wish: str) -> None:
    assert hook().wished(value) == wish


@pytest.mark.parametrize("value", ["yes", "true", "2", " 1"])
def test_any_other_word_is_refused_with_the_legal_ones(value: str) -> None:
    with pytest.raises(ValueError, match=f"MULTISLO_COMPILE='{value}': must be 1 .*, auto .* or 0"):
        hook().wished(value)


def test_a_listed_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"no file fits 'router/gone\.py'"):
        hook().sources(ROOT, ["router/gone.py"], [])


def test_the_pure_parts_are_what_is_compiled_and_nothing_twice() -> None:
    files = compiled_files()

    assert "router/multislo_router/core/machine.py" in files
    assert "engine/multislo_engine/planners/planner.py" not in files
    assert not [name for name in files if name.endswith("__init__.py")]
    assert files == sorted(set(files))


def test_what_does_not_compile_fails_or_falls_back_as_was_asked(tmp_path: Path) -> None:
    """A source that no compiler takes, since its types are wrong."""
    package = tmp_path / "room" / "broken"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "part.py").write_text('number: int = "one"\n', encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'hatchling.build'\n"
        "[project]\nname = 'broken'\nversion = '1'\n[dependency-groups]\nbuild = []\n"
        "[tool.hatch.build.targets.wheel]\npackages = ['room/broken']\n"
        "[tool.hatch.build.targets.wheel.hooks.custom]\ncompiled = ['room/broken/*.py']\ninterpreted = []\n",
        encoding="utf-8",
    )
    (tmp_path / "hatch_build.py").symlink_to(ROOT / "hatch_build.py")

    def built(wish: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MULTISLO_COMPILE": wish}
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    failed, fallen_back = built("1"), built("auto")

    assert failed.returncode != 0
    assert "Incompatible types in assignment" in failed.stderr
    assert fallen_back.returncode == 0, fallen_back.stderr
    assert "MULTISLO_COMPILE=auto: the wheel is pure Python" in fallen_back.stderr + fallen_back.stdout
    assert [path.name for path in (tmp_path / "dist").iterdir()] == ["broken-1-py2.py3-none-any.whl"]


@only_compiled
def test_every_listed_module_runs_as_machine_code() -> None:
    assert build() == "compiled"
    for name in compiled_files():
        module = name.split("/", 1)[1].removesuffix(".py").replace("/", ".")
        spec = find_spec(module)
        assert spec is not None, module
        assert (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES)), f"{module} is interpreted: {spec.origin}"


def decided(folder: Path, name: str, pythonpath: list[str], *args: str) -> tuple[str, Path]:
    """What the build that this path finds prints of itself, and its decisions in a file."""
    tests = [str(ROOT / "tests/router/core"), str(ROOT / "tests/laws")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*pythonpath, *tests]), "PYTHONHASHSEED": "0"}
    command = [sys.executable, str(ROOT / "tests/builds/decisions.py"), *args]
    with (folder / name).open("w") as out:
        run = subprocess.run(command, env=environment, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stderr.strip(), folder / name


@only_compiled
def test_both_builds_decide_the_same_to_the_last_bit(tmp_path: Path) -> None:
    compiled, theirs = decided(tmp_path, "compiled", [])
    # The checkout's sources come before the installed wheel: the same code, interpreted.
    pure, ours = decided(tmp_path, "pure", ROOTS)

    assert (compiled, pure) == ("compiled", "pure")
    count = 0
    with theirs.open() as left, ours.open() as right:
        for count, (of_compiled, of_pure) in enumerate(zip_longest(left, right), 1):
            assert of_compiled == of_pure, f"line {count}"
    assert count > 30_000


@only_compiled
def test_a_journal_of_the_compiled_build_plays_again_to_the_last_bit(tmp_path: Path) -> None:
    _, journal = decided(tmp_path, "journal", [], "journal")
    code = "from multislo.command import main; main()"

    played = subprocess.run(
        [sys.executable, "-c", code, "replay-journal", str(journal)], capture_output=True, text=True, check=False
    )

    assert played.returncode == 0, played.stdout[-2000:] + played.stderr[-2000:]
    assert "(compiled)" in played.stdout
