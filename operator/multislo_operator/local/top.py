"""What `multislo top` shows: a fleet snapshot as a table of tiers and the load gradient as bars. Pure: snapshot in, rich renderable out."""

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from multislo_api.fleet import FleetSnapshot, InstanceView, LatencyView, TierView

GOAL = 0.99
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "bright_red")
STATE_STYLES = {"starting": "dim", "draining": "dim yellow", "failed": "bold red"}
BAR_CELLS = 30


def frame(snapshot: FleetSnapshot, previous: FleetSnapshot | None = None, note: str | None = None) -> RenderableType:
    """One picture of the fleet. `previous` is an earlier snapshot, for what happened since; `note` a line under the title."""
    colours = {tier.name: COLOURS[index % len(COLOURS)] for index, tier in enumerate(_tightest_first(snapshot))}
    parts: list[RenderableType] = [_title(snapshot)]
    if note is not None:
        parts.append(Text(note, style="bold red"))
    parts += [_tiers(snapshot, previous, colours), _gradient(snapshot, colours)]
    return Group(*parts)


def _tightest_first(snapshot: FleetSnapshot) -> list[TierView]:
    return sorted(snapshot.tiers, key=lambda tier: tier.tpot_s)


def _title(snapshot: FleetSnapshot) -> Text:
    states: dict[str, int] = {}
    for instance in snapshot.instances:
        states[instance.state] = states.get(instance.state, 0) + 1
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none yet"
    title = Text(snapshot.model, style="bold")
    title.append(f"  {snapshot.placement}  instances: {counts}  router up {_span(snapshot.uptime_s)}", style="not bold")
    return title


def _tiers(snapshot: FleetSnapshot, previous: FleetSnapshot | None, colours: Mapping[str, str]) -> Table:
    before = {tier.name: tier for tier in previous.tiers} if previous else {}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("tier")
    for name in (
        "attained",
        "TTFT p50/p99",
        "SLO",
        "TPOT p50/p99",
        "SLO",
        "req/s",
        "work",
        "running",
        "pending",
        "refused",
    ):
        table.add_column(name, justify="right")
    for tier in _tightest_first(snapshot):
        refused = tier.refused - before[tier.name].refused if tier.name in before else 0
        pending = f"{tier.pending} ({tier.pending_oldest_s:.1f} s)" if tier.pending else "0"
        table.add_row(
            Text(tier.name, style=colours[tier.name]),
            _attained(tier.attainment),
            _latency(tier.ttft, tier.ttft_s),
            _ms(tier.ttft_s),
            _latency(tier.tpot, tier.tpot_s),
            _ms(tier.tpot_s),
            f"{tier.arrival_rate:.1f}",
            f"{tier.work_rate:.2f}",
            str(tier.in_flight),
            Text(pending, style="bold red" if tier.pending else ""),
            f"{tier.refused}" + (f" (+{refused})" if refused > 0 else ""),
        )
    return table


def _gradient(snapshot: FleetSnapshot, colours: Mapping[str, str]) -> Table:
    """Bars by tier, tightest first, the warm pool last; loads falling within a tier."""
    order = {name: index for index, name in enumerate(colours)}
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(5):
        table.add_column(no_wrap=True)
    ranked = sorted(snapshot.instances, key=lambda i: (order.get(i.tier or "", len(order)), -i.load_mean, i.id))
    for instance in ranked:
        colour = colours.get(instance.tier or "", "white")
        style = STATE_STYLES.get(instance.state, "")
        table.add_row(
            Text(instance.id, style=style),
            Text(instance.tier or "warm", style=colour),
            _bar(instance, colour),
            Text(f"{instance.load_mean:4.2f}", style="bold red" if instance.load_mean > 1.0 else style),
            Text(_about(instance), style=style),
        )
    return table


def _bar(instance: InstanceView, colour: str) -> Text:
    filled = min(BAR_CELLS, round(instance.load_mean * BAR_CELLS))
    bar = Text("█" * filled, style=STATE_STYLES.get(instance.state, colour))
    bar.append("·" * (BAR_CELLS - filled), style="dim")
    return bar


def _about(instance: InstanceView) -> str:
    parts: list[str] = [] if instance.state == "ready" else [instance.state]
    parts.append(f"{instance.requests} requests" if instance.requests else f"empty {_span(instance.empty_s)}")
    if instance.kv_tokens_max:
        parts.append(f"KV {instance.kv_tokens / instance.kv_tokens_max:.0%}")
    if abs(instance.calibration - 1.0) > 0.05:
        parts.append(f"{instance.calibration:.2f} x the profile's time")
    return ", ".join(parts)


def _attained(share: float | None) -> Text:
    if share is None:
        return Text("-", style="dim")
    style = "green" if share >= GOAL else "yellow" if share >= 0.9 else "bold red"
    return Text(f"{share:.1%}", style=style)


def _latency(seen: LatencyView, slo_s: float) -> Text:
    text = Text()
    for index, value in enumerate((seen.p50_s, seen.p99_s)):
        text.append(" / " if index else "")
        text.append(_ms(value), style="red" if value is not None and value > slo_s else "")
    return text


def _ms(value_s: float | None) -> str:
    if value_s is None:
        return "-"
    return f"{value_s:.1f} s" if value_s >= 10.0 else f"{1e3 * value_s:.0f} ms"


def _span(seconds: float) -> str:
    if seconds < 100.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000.0 else f"{seconds / 3600:.1f} h"
