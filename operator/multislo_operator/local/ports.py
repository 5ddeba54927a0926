"""Free ports of the loopback for engines and, where asked for, the router."""

import socket

ENGINE_PORTS = range(20_000, 30_000)
"""Below the range from which systems take ports for outgoing connections: an engine binds its port only after its start-up, and the
router's connections to the others must not have taken it by then."""
ROUTER_PORTS = range(30_000, 32_000)
"""Others than the engines': two fleets that start at the same moment must not promise the same port to different programs."""
STRIDE = 97
"""Between the first ports of two fleets whose seeds follow each other, as process ids do."""


class Ports:
    """Hands out each port once. `seed` chooses where to begin, so that two fleets on a machine seldom try the same."""

    def __init__(self, among: range, seed: int) -> None:
        self._among = among
        self._next = seed * STRIDE % len(among)

    def take(self) -> int:
        """Raises OSError where none is free."""
        for _ in self._among:
            port = self._among[self._next]
            self._next = (self._next + 1) % len(self._among)
            if is_free(port):
                return port
        raise OSError(f"no free port between {self._among[0]} and {self._among[-1]}")


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
