"""The command tree. Each program lives in its own room and is imported only when it is called, so `multislo --help` is quick."""

from importlib import import_module
from importlib.metadata import version

import click

# name -> (module, attribute, one line of help). Shown in this order.
PROGRAMS: dict[str, tuple[str, str, str]] = {
    "up": ("multislo_operator.cli", "up", "Run a manifest's whole fleet on this machine."),
    "top": ("multislo_operator.cli", "top", "Watch a running fleet in the terminal."),
    "check": ("multislo_api.cli", "check", "Check a manifest and print every mistake in it."),
    "replay": ("multislo_bench.cli", "replay", "Replay a trace against any OpenAI URL and report per tier."),
    "demo": ("multislo_bench.cli", "demo", "Compare one fleet with round robin under the same load."),
    "emulate": ("multislo_engine.cli", "emulate", "Serve an emulated vLLM engine."),
    "router": ("multislo_router.cli", "router", "Run the router alone."),
    "replay-journal": (
        "multislo_router.replay_journal",
        "replay_journal",
        "Play a router's journal again, and compare decisions.",
    ),
    "operator": ("multislo_operator.kubernetes.cli", "operator", "Run the fleets of a Kubernetes cluster."),
    "profile": ("multislo_perf.cli", "profile", "Show and fit latency profiles."),
    "simulate": ("multislo_sim.cli", "simulate", "Simulate a fleet: attainment, cost, experiments."),
    "plan": ("multislo_sim.plan_cli", "plan", "Find the cheapest instance counts for a rate and an attainment."),
    "bench": ("multislo_bench.cli", "bench", "Measure the router's own cost."),
}


class _Programs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(PROGRAMS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in PROGRAMS:
            return None
        module, attribute, _ = PROGRAMS[name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in PROGRAMS.items()])


def _print_version(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from multislo_router.build import build

        click.echo(f"multislo {version('multislo')} ({build()})")
        context.exit()


@click.group(cls=_Programs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and the build (compiled or pure), and exit.",
)
def main() -> None:
    """Serve one LLM to users with different latency needs on one GPU fleet.

    Exit codes: 0 done, 1 the answer is no or the command failed, 2 wrong use.
    """
