"""The command line of an engine on one machine. Called by `fleet`; the flags are those of `multislo_operator.engine_flags`."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from multislo_api.manifest import MultiSLOServing, ProfileFile
from multislo_operator.engine_flags import batch_tokens_of, emulate_args, vllm_args
from multislo_perf.profile import Profile

SHUTDOWN_TIMEOUT_S = 5
"""Between SIGTERM and the abort of what is still running. An instance that is stopped has been drained before."""


class NotHere(Exception):
    """Something that the manifest asks for cannot be had on one machine; the message names the field, and says what to do."""


@dataclass(frozen=True, slots=True)
class EngineStart:
    """How an engine is started, and what that makes of it."""

    command: tuple[str, ...]
    batch_tokens: int
    """`max_num_batched_tokens` that it really gets."""


def multislo() -> list[str]:
    """The `multislo` command of this very installation, wherever it is."""
    beside = Path(sys.executable).with_name("multislo")
    if beside.exists():
        return [str(beside)]
    return [sys.executable, "-c", "from multislo.command import main; main(prog_name='multislo')"]


def check_startable(manifest: MultiSLOServing) -> None:
    """Raises NotHere where no engine of this manifest could be started."""
    engine = manifest.spec.engine
    if engine.type == "Emulated":
        return
    program = (engine.command or ["vllm"])[0]
    if shutil.which(program) is None:
        field = "spec.engine.command" if engine.command else "spec.engine.type: VLLM"
        raise NotHere(
            f'{field}: the program "{program}" is not on PATH; install it, name another in spec.engine.command, '
            "or take type: Emulated to try a fleet without a GPU"
        )


def engine_start(
    manifest: MultiSLOServing, profile: Profile, tier: str | None, port: int, seed: int, parent_pid: int
) -> EngineStart:
    """The command for an instance of `tier` (None: the warm pool) on a port of the loopback."""
    spec = manifest.spec
    listening = {"--port": str(port), "--host": "127.0.0.1", "--shutdown-timeout": str(SHUTDOWN_TIMEOUT_S)}
    command: tuple[str, ...]
    if spec.engine.type == "Emulated":
        named = spec.profile.file if isinstance(spec.profile, ProfileFile) else profile.name
        listening["--parent-pid"] = str(parent_pid)
        command = (*multislo(), "emulate", *emulate_args(manifest, profile, tier, seed, named, listening))
    else:
        own = spec.engine.command
        head = [*own, "--model", spec.model.name] if own else ["vllm", "serve", spec.model.name]
        command = (*head, *vllm_args(manifest, profile, tier, listening))
    return EngineStart(command, batch_tokens_of(manifest, profile, tier))
