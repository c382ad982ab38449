"""TCP ports for servers that are told where to listen before they do."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def quiet_ports(count: int, also: int = 0) -> list[int]:
    """`count` ports of 127.0.0.1 that are free, each with the one `also` above it.

    None is of those that the kernel hands out: one of these may be another's before the server listens on it,
    and a client that asks for it meanwhile may be given it for its own end, and then talks to itself.
    """
    low, high = (int(bound) for bound in _RANGE.read_text().split())
    every = range(20_000, 65_536 - also)  # Ray gives its workers those below
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
