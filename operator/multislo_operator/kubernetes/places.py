"""Who holds a place in the budget without serving, in words: pods of silent nodes, pods that are being deleted, pods that somebody took out
of the fleet. Pure; used by `conditions`."""

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

from multislo_operator.kubernetes.pods import NODE_LOST_S, EnginePod

NAMED_MAX = 3
"""Pods of a kind that are spelled out."""


def silent(pods: Sequence[EnginePod]) -> list[str]:
    """Those whose node has not been heard of, and that still count."""
    found = [pod for pod in pods if pod.silent_at is not None and pod.holds_place]
    return _few(
        f"{pod.name} holds its place: its node {pod.node} has not been heard of since {_clock(pod.silent_at)}; it counts until "
        f"{_clock((pod.silent_at or 0.0) + NODE_LOST_S)} and is replaced then"
        for pod in found
    )


def holders(pods: Sequence[EnginePod], members: Collection[str]) -> list[str]:
    """Those that are being deleted, or belong to the fleet no more, and still count. `members` by name."""
    found = [pod for pod in pods if pod.terminating and pod.holds_place and pod.silent_at is None]
    ending = (f"{pod.name}, which is being deleted, holds its place until it has ended" for pod in found)
    return _few(ending) + _few(_out(pods, members))


def left(pods: Sequence[EnginePod], members: Collection[str]) -> list[str]:
    """Those that belong to the fleet no more and are still there. `members` by name."""
    lost = (f"{pod.name} was on node {pod.node}, which is lost: it does not count any more" for pod in pods if pod.lost)
    return _few(lost) + _few(_out(pods, members))


def _out(pods: Sequence[EnginePod], members: Collection[str]) -> Iterable[str]:
    return (
        f"{pod.name} is out of the fleet by its labels: it gets no requests, and holds its accelerators until it is deleted"
        for pod in pods
        if pod.name not in members and pod.holds_place and not pod.terminating
    )


def _few(words: Iterable[str]) -> list[str]:
    told = list(words)
    more = len(told) - NAMED_MAX
    return told[:NAMED_MAX] + ([f"and {more} more like it"] if more > 0 else [])


def _clock(at: float | None) -> str:
    return datetime.fromtimestamp(at or 0.0, UTC).strftime("%H:%M:%SZ")
