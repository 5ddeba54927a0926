"""What `multislo top` shows: a fleet snapshot as a table of tiers and the load gradient as bars. Pure: snapshot in, rich renderable out."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from multislo_api.fleet import FleetSnapshot, InstanceView, LatencyView, TierView

GOAL = 0.99
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "bright_red")
STATE_STYLES = {"starting": "dim", "draining": "dim yellow", "failed": "bold red"}
WIDTH = 120
BAR_CELLS = 30
BAR_CELLS_MIN = 8
DROPPED_FIRST = ("work", "req/s", "refused", "running", "TPOT\nSLO", "TTFT\nSLO", "pending")
"""Columns that go, in this order, until the rest is whole in a narrow terminal."""


def frame(
    snapshot: FleetSnapshot, previous: FleetSnapshot | None = None, note: str | None = None, width: int = WIDTH
) -> RenderableType:
    """One picture of the fleet. `previous` is an earlier snapshot, for what happened since; `note` a line under the title; `width`
    how many cells there are."""
    colours = {tier.name: COLOURS[index % len(COLOURS)] for index, tier in enumerate(_tightest_first(snapshot))}
    parts: list[RenderableType] = [_title(snapshot)]
    if note is not None:
        parts.append(Text(note, style="bold red"))
    parts += [Text(), _tiers(snapshot, previous, colours, width), Text(), _gradient(snapshot, colours, width)]
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


def _tiers(snapshot: FleetSnapshot, previous: FleetSnapshot | None, colours: Mapping[str, str], width: int) -> Table:
    before = {tier.name: tier for tier in previous.tiers} if previous else {}
    rows = [_row(tier, before.get(tier.name), colours[tier.name]) for tier in _tightest_first(snapshot)]
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    for name in DROPPED_FIRST:
        # Two spaces between every two columns: a padding and the box's.
        if sum(_cells(*column) + 2 for column in columns.items()) - 2 <= width:
            break
        columns.pop(name, None)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="left" if name == "tier" else "right", no_wrap=True, overflow="ignore")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _row(tier: TierView, before: TierView | None, colour: str) -> dict[str, Text]:
    refused = tier.refused - before.refused if before else 0
    pending = f"{tier.pending} ({tier.pending_oldest_s:.1f} s)" if tier.pending else "0"
    return {
        "tier": Text(tier.name, style=colour),
        "attained": _attained(tier.attainment),
        "TTFT\np50/p99": _latency(tier.ttft, tier.ttft_s),
        "TTFT\nSLO": Text(_ms(tier.ttft_s)),
        "TPOT\np50/p99": _latency(tier.tpot, tier.tpot_s),
        "TPOT\nSLO": Text(_ms(tier.tpot_s)),
        "req/s": Text(f"{tier.arrival_rate:.1f}"),
        "work": Text(f"{tier.work_rate:.2f}"),
        "running": Text(str(tier.in_flight)),
        "pending": Text(pending, style="bold red" if tier.pending else ""),
        "refused": Text(f"{tier.refused}" + (f" (+{refused})" if refused > 0 else "")),
    }


def _cells(name: str, column: Sequence[Text]) -> int:
    return max(*map(len, name.splitlines()), *(text.cell_len for text in column))


def _gradient(snapshot: FleetSnapshot, colours: Mapping[str, str], width: int) -> Table:
    """Bars by tier, tightest first, the warm pool last; loads falling within a tier."""
    order = {name: index for index, name in enumerate(colours)}
    ranked = sorted(snapshot.instances, key=lambda i: (order.get(i.tier or "", len(order)), -i.load_mean, i.id))
    rows = [_instance_row(instance, colours.get(instance.tier or "", "white")) for instance in ranked]
    # The bar gets what the texts leave, with a space between every two columns.
    id_cells, tier_cells, load_cells, about_cells = (
        max((row[at].cell_len for row in rows), default=0) for at in range(4)
    )
    left = width - id_cells - tier_cells - load_cells - 4
    bar_cells = max(BAR_CELLS_MIN, min(BAR_CELLS, left - about_cells))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
    for _ in range(5):
        table.add_column(no_wrap=True, overflow="ignore")
    for instance, (id, tier, load, about) in zip(ranked, rows, strict=True):
        about.truncate(max(1, left - bar_cells), overflow="ellipsis")
        table.add_row(id, tier, _bar(instance, colours.get(instance.tier or "", "white"), bar_cells), load, about)
    return table


def _instance_row(instance: InstanceView, colour: str) -> tuple[Text, Text, Text, Text]:
    style = STATE_STYLES.get(instance.state, "")
    return (
        Text(instance.id, style=style),
        Text(instance.tier or "warm", style=colour),
        Text(f"{instance.load_mean:4.2f}", style="bold red" if instance.load_mean > 1.0 else style),
        Text(_about(instance), style=style),
    )


def _bar(instance: InstanceView, colour: str, cells: int) -> Text:
    filled = min(cells, round(instance.load_mean * cells))
    bar = Text("█" * filled, style=STATE_STYLES.get(instance.state, colour))
    bar.append("·" * (cells - filled), style="dim")
    return bar


def _about(instance: InstanceView) -> str:
    parts: list[str] = [] if instance.state == "ready" else [instance.state]
    parts.append(f"{instance.requests} req." if instance.requests else f"empty {_span(instance.empty_s)}")
    if instance.kv_tokens_max:
        parts.append(f"KV {instance.kv_tokens / instance.kv_tokens_max:.0%}")
    if abs(instance.calibration - 1.0) > 0.05:
        parts.append(f"{instance.calibration:.2f} x predicted")
    return ", ".join(parts)


def _attained(share: float | None) -> Text:
    if share is None:
        return Text("-", style="dim")
    style = "green" if share >= GOAL else "yellow" if share >= 0.9 else "bold red"
    return Text(f"{share:.1%}", style=style)


def _latency(seen: LatencyView, slo_s: float) -> Text:
    """The unit once, behind both, where it is the same."""
    values = (seen.p50_s, seen.p99_s)
    first, second = map(_ms, values)
    if first.rpartition(" ")[2] == second.rpartition(" ")[2]:
        first = first.partition(" ")[0]
    styles = ["red" if value is not None and value > slo_s else "" for value in values]
    return Text.assemble((first, styles[0]), "/", (second, styles[1]))


def _ms(value_s: float | None) -> str:
    if value_s is None:
        return "-"
    return f"{value_s:.1f} s" if value_s >= 10.0 else f"{1e3 * value_s:.0f} ms"


def _span(seconds: float) -> str:
    if seconds < 100.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000.0 else f"{seconds / 3600:.1f} h"
