"""The command line of an engine on one machine: vLLM's flags from the tier and the profile, the user's own last. Called by `fleet`."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multislo_api.manifest import MultiSLOServing, ProfileFile
from multislo_perf.profile import Profile
from multislo_perf.sizing import batch_tokens

WARM_BATCH_TOKENS = 1024
"""Of an instance that is started for the warm pool: any tier may get it."""
SHUTDOWN_TIMEOUT_S = 5
"""Between SIGTERM and the abort of what is still running. An instance that is stopped has been drained before."""
EMULATED_SCHEDULERS = {"Stock": "fcfs", "Priority": "priority", "SLOAware": "slo-aware"}


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
    if engine.scheduler == "SLOAware":
        raise NotHere("spec.engine.scheduler: SLOAware needs the engine plug-in; with type VLLM use Stock or Priority")
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
    tpot_s = next((t.slo.tpot_s for t in spec.tiers if t.name == tier), None)
    wanted = WARM_BATCH_TOKENS if tpot_s is None else batch_tokens(profile.latency, tpot_s)
    given = flag_value(spec.engine.args, "--max-num-batched-tokens")
    shared = [
        *("--port", str(port), "--host", "127.0.0.1"),
        *("--max-num-batched-tokens", str(wanted)),
        *("--shutdown-timeout", str(SHUTDOWN_TIMEOUT_S)),
    ]
    if spec.model.max_length is not None:
        shared += ["--max-model-len", str(spec.model.max_length)]
    head = _emulated(manifest, profile, seed, parent_pid) if spec.engine.type == "Emulated" else _vllm(manifest)
    return EngineStart((*head, *shared, *spec.engine.args), given or wanted)


def _emulated(manifest: MultiSLOServing, profile: Profile, seed: int, parent_pid: int) -> list[str]:
    spec = manifest.spec
    emulation = spec.engine.emulation
    named = spec.profile.file if isinstance(spec.profile, ProfileFile) else profile.name
    names = [part for name in spec.model.served_names for part in ("--served-name", name)]
    return [
        *multislo(),
        "emulate",
        *("--profile", named, "--model", spec.model.name, *names),
        *("--scheduler", EMULATED_SCHEDULERS[spec.engine.scheduler]),
        *("--slow-down", repr(emulation.slow_down), "--jitter", repr(emulation.jitter), "--seed", str(seed)),
        *("--startup", repr(startup_s(manifest, profile)), "--parent-pid", str(parent_pid)),
    ]


def _vllm(manifest: MultiSLOServing) -> list[str]:
    spec = manifest.spec
    # "priority" only where asked for: stock vLLM refuses a priority that is not 0 otherwise.
    policy = ["--scheduling-policy", "priority"] if spec.engine.scheduler == "Priority" else []
    tensor_parallel = spec.engine.accelerator.per_instance
    parallel = ["--tensor-parallel-size", str(tensor_parallel)] if tensor_parallel > 1 else []
    head = (
        [*spec.engine.command, "--model", spec.model.name]
        if spec.engine.command
        else ["vllm", "serve", spec.model.name]
    )
    return [*head, "--served-model-name", *spec.model.served_names, *policy, *parallel]


def startup_s(manifest: MultiSLOServing, profile: Profile) -> float:
    """From the start of a process to its readiness, as far as is known before."""
    engine = manifest.spec.engine
    if engine.type == "Emulated" and engine.emulation.startup_s is not None:
        return engine.emulation.startup_s
    return profile.startup_s


def flag_value(args: Sequence[str], name: str) -> int | None:
    """The last value of a numeric flag, written `--flag N` or `--flag=N`; None where it is absent or no number."""
    found = None
    for index, arg in enumerate(args):
        flag, _, text = arg.partition("=")
        if arg == name and index + 1 < len(args):
            text = args[index + 1]
        if flag == name and text.isascii() and text.isdigit() and int(text) > 0:
            found = int(text)
    return found
