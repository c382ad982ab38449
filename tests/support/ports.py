"""TCP ports for servers that must be told where to listen before they start."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def quiet_ports(count: int, also: int = 0) -> list[int]:
    """Return `count` free ports of 127.0.0.1, each with a free port `also` above it.

    None of them is an ephemeral port of the kernel: another process might take such a port before
    the server listens on it, and a client that connects meanwhile may be given the same port for
    its own end and then talk to itself.
    """
    low, high = (int(bound) for bound in _RANGE.read_text().split())
    every = range(20_000, 65_536 - also)  # Ray uses the ports below for its workers
    quiet = [port for port in every if not any(low <= each <= high for each in (port, port + also))]
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(quiet or every, len(quiet or every)):
            if len(found) == count:
                break
            with contextlib.suppress(OSError):
                for each in {port, port + also}:
                    held.enter_context(socket.socket()).bind(("127.0.0.1", each))
                found.append(port)
    return found
