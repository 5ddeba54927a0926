"""A door from the host's loopback into another network namespace: `forward.py NAMESPACE_FILE OWN_PORT ADDRESS PORT`. Bytes go both ways as
they come, ends and resets too, so that what a client sees is what happened inside. Started by node_network.py; needs Python alone.
"""

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000
CHUNK = 1 << 16
libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace: int) -> None:
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def socket_inside(inside: int, outside: int) -> socket.socket:
    """A socket belongs to the namespace that its maker was in. No await between: nobody else makes one meanwhile."""
    enter(inside)
    try:
        made = socket.socket()
    finally:
        enter(outside)
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


async def pump(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, CHUNK):
        await loop.sock_sendall(target, data)
    target.shutdown(socket.SHUT_WR)


async def serve(client: socket.socket, inside: int, outside: int, address: str, port: int) -> None:
    client.setblocking(False)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = socket_inside(inside, outside)
    ways: list[asyncio.Task[None]] = []
    try:
        await asyncio.get_running_loop().sock_connect(server, (address, port))
        ways = [asyncio.create_task(pump(client, server)), asyncio.create_task(pump(server, client))]
        await asyncio.gather(*ways)
    except OSError:  # One side was reset or never answered: so is the other.
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        client.close()
        server.close()


async def main(namespace: str, own_port: str, address: str, port: str) -> None:
    outside = os.open("/proc/self/ns/net", os.O_RDONLY)
    inside = os.open(namespace, os.O_RDONLY)
    listener = socket.create_server(("127.0.0.1", int(own_port)), backlog=1024)
    listener.setblocking(False)
    print("ready", flush=True)
    running: set[asyncio.Task[None]] = set()
    while True:
        client, _ = await asyncio.get_running_loop().sock_accept(listener)
        task = asyncio.create_task(serve(client, inside, outside, address, int(port)))
        running.add(task)
        task.add_done_callback(running.discard)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
