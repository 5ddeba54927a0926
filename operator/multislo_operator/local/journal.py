"""What happened to the fleet and why: a JSON line each in `decisions.jsonl`, a readable line each on stderr. Written by `up`; read by
whoever plots instances over time or counts instance-seconds."""

import json
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import click

from multislo_operator.decide.plan import Action, CallOffDrain, Convert, Drain, Hold, HoldCause, Start, Stop

FILE_NAME = "decisions.jsonl"
SAMPLE_S = 5.0
"""The fleet is written at each change, and at least this often."""
SPOKEN_HOLDS = {HoldCause.DATA_UNKNOWN, HoldCause.BUDGET_SHORT, HoldCause.TIER_AT_MAX, HoldCause.NOT_COMING_UP}
"""The others are the ordinary course of things, and only in the file."""

Counts = Mapping[str, Mapping[str, int]]
"""tier ("" for the warm pool) -> state -> instances."""


class Journal:
    """Opens the file; `close` writes the last sample. `clock` gives Unix time."""

    def __init__(
        self, folder: Path, say: Callable[[str], None] | None = None, events: TextIO | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.path = folder / FILE_NAME
        self._file = self.path.open("a", encoding="utf-8")
        self._say = say or (lambda line: click.echo(line, err=True))
        self._events = events
        self._clock = clock
        self._counts: Counts | None = None
        self._sampled_at = 0.0
        self._held: dict[tuple[HoldCause, str | None], str] = {}
        self.instance_seconds = 0.0

    def close(self) -> None:
        self.fleet({}, {})
        self._file.close()

    def action(self, action: Action, instance: str, tier: str | None) -> None:
        """A decision that is being carried out on `instance`, of `tier` until now."""
        match action:
            case Start():
                verb, text = "start", f"start {instance} for {tier or 'the warm pool'}"
            case Drain():
                verb, text = "drain", f"drain {instance} of {tier or 'the warm pool'}"
            case CallOffDrain():
                verb, text = "call_off_drain", f"call off the drain of {instance}"
            case Convert(tier=other):
                verb, text = "convert", f"move {instance} from {tier or 'the warm pool'} to {other or 'the warm pool'}"
            case Stop():
                verb, text = "stop", f"stop {instance}"
        self._write(
            verb,
            f"{text}: {action.reason}",
            instance=instance,
            tier=tier,
            to=action.tier if isinstance(action, Convert) else tier,
            reason=action.reason,
            terms=action.terms,
        )

    def holds(self, holds: tuple[Hold, ...]) -> None:
        """What is held back now; each is told once while it lasts."""
        now = {(hold.cause, hold.tier): hold.reason for hold in holds}
        for hold in holds:
            if (hold.cause, hold.tier) not in self._held:
                text = f"hold ({hold.cause}): {hold.reason}" if hold.cause in SPOKEN_HOLDS else None
                self._write("hold", text, cause=hold.cause, tier=hold.tier, reason=hold.reason)
        self._held = now

    def note(self, event: str, text: str, **fields: Any) -> None:
        """Something that happened without a decision: an engine is ready, has died, ..."""
        self._write(event, text, **fields)

    def fleet(self, counts: Counts, desired: Mapping[str, int]) -> None:
        """The instances as they are now."""
        now = self._clock()
        if counts == self._counts and now - self._sampled_at < SAMPLE_S:
            return
        if self._counts is not None:
            self.instance_seconds += _total(self._counts) * (now - self._sampled_at)
        states: dict[str, int] = {}
        for by_state in counts.values():
            for state, count in by_state.items():
                states[state] = states.get(state, 0) + count
        self._counts, self._sampled_at = {tier: dict(by_state) for tier, by_state in counts.items()}, now
        self._write("fleet", None, at=now, instances=states, tiers=self._counts, desired=dict(desired))

    def _write(self, event: str, text: str | None, at: float | None = None, **fields: Any) -> None:
        at = self._clock() if at is None else at
        line = json.dumps({"at": round(at, 3), "event": event, **({} if text is None else {"text": text}), **fields})
        self._file.write(line + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.write(line + "\n")
            self._events.flush()
        elif text is not None:
            self._say(f"{time.strftime('%H:%M:%S', time.localtime(at))}  {text}")


def _total(counts: Counts) -> int:
    return sum(sum(by_state.values()) for by_state in counts.values())


def fleet_samples(path: Path) -> list[dict[str, Any]]:
    """The `fleet` lines of a decisions.jsonl, in order of time."""
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    return [line for line in lines if line["event"] == "fleet"]


def instance_seconds(path: Path, begin: float = float("-inf"), end: float = float("inf")) -> float:
    """Instance-seconds (starting, ready, draining and failed alike: each holds its accelerators) between two Unix times."""
    samples = fleet_samples(path)
    total = 0.0
    for one, next_one in pairwise(samples):
        span = min(next_one["at"], end) - max(one["at"], begin)
        if span > 0.0:
            total += span * sum(one["instances"].values())
    return total
