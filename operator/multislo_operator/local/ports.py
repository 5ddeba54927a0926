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
    return refusal("127.0.0.1", port) is None


def refusal(host: str, port: int) -> OSError | None:
    """Why nobody can listen there; None: it is free."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: a port whose last connections are in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None
