"""Free ports of the loopback for engines and, where asked for, the router."""

import socket

PORT_FIRST = 20_000
PORT_LAST = 29_999
"""Below the range from which systems take ports for outgoing connections: an engine binds its port only after its start-up, and the
router's connections to the others must not have taken it by then."""


class Ports:
    """Hands out each port once. `seed` chooses where to begin, so that two fleets on a machine seldom try the same."""

    def __init__(self, seed: int) -> None:
        self._next = PORT_FIRST + seed * 97 % (PORT_LAST - PORT_FIRST + 1)

    def take(self) -> int:
        """Raises OSError where none is free."""
        for _ in range(PORT_LAST - PORT_FIRST + 1):
            port = self._next
            self._next = port + 1 if port < PORT_LAST else PORT_FIRST
            if is_free(port):
                return port
        raise OSError(f"no free port between {PORT_FIRST} and {PORT_LAST}")


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
