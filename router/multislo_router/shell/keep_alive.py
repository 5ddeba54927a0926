"""How a peer that vanished without a word is noticed: TCP's own probes and limits, set on every socket of a client and of an engine."""

import socket
from dataclasses import dataclass
from typing import Final

ESTABLISHED: Final = 1
"""Linux's TCP_ESTABLISHED: both sides may still send."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds of silence before the first probe, between two, how many, and how long sent bytes may stay unacknowledged."""

    idle_s: int
    interval_s: int
    probes: int
    unacknowledged_max_s: int


CLIENT: Final = Patience(idle_s=30, interval_s=10, probes=3, unacknowledged_max_s=60)
"""A client's host that is gone gives its place back within a minute. The probes keep NATs from forgetting a connection, too."""
ENGINE: Final = Patience(idle_s=5, interval_s=5, probes=3, unacknowledged_max_s=20)
"""Engines are in the same network, and their requests have a second chance."""


def watch_peer(sock: socket.socket, patience: Patience) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", patience.idle_s),
        ("TCP_KEEPINTVL", patience.interval_s),
        ("TCP_KEEPCNT", patience.probes),
        ("TCP_USER_TIMEOUT", 1000 * patience.unacknowledged_max_s),
    ):
        if hasattr(socket, option):  # not on every system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def has_left(sock: socket.socket) -> bool:
    """Whether the peer has closed the connection, for a socket that is not being read: then nobody says so. False where the system does not
    tell."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED
