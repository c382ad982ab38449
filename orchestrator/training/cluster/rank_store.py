"""How learner ranks find each other, without a port that anybody could connect to.

torch.distributed needs a key-value store to exchange the addresses of its connections. Its own `TCPStore`
listens on a port without authentication: any process that reaches the port can read and change keys. Here the
keys live in rank 0's actor and the other ranks reach them by Ray calls, which Ray authenticates with the
cluster's token.

    rank 0         KeyValues <- RankStore           in its own memory
    other ranks    RankStore -> rank0.store.remote  over Ray

The connections that gloo and NCCL then open between ranks are not authenticated; torch offers no way to. They
bind to the interface of the node's own address, or to the loopback interface if all ranks are on one node.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import psutil
from torch._C._distributed_c10d import Store

from orchestrator.errors import StateError

LOOPBACK = "127.0.0.1"
_POLL_SECONDS = (0.005, 0.1)
"""First and longest pause between two looks for a key."""

Access = Callable[..., object]
"""`access(operation, *arguments)`: runs an operation of `KeyValues`, here or in another process."""


class RankStore(Store):
    """A torch.distributed store whose keys are reached through `access`."""

    def __init__(self, access: Access, timeout: timedelta) -> None:
        super().__init__()
        self._access, self._timeout = access, timeout

    def set(self, key: str, value: str | bytes) -> None:
        self._access("set", key, _encoded(value))

    def get(self, key: str) -> bytes:
        """The value, as soon as another rank has set it."""
        self.wait([key])
        return self._access("get", key)  # pyright: ignore[reportReturnType]

    def add(self, key: str, value: int) -> int:
        return self._access("add", key, value)  # pyright: ignore[reportReturnType]

    def append(self, key: str, value: str | bytes) -> None:
        self._access("append", key, _encoded(value))

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        values = _encoded(expected_value), _encoded(desired_value)
        return self._access("compare_set", key, *values)  # pyright: ignore[reportReturnType]

    def check(self, keys: Sequence[str]) -> bool:
        return bool(self._access("check", list(keys)))

    def delete_key(self, key: str) -> bool:
        return bool(self._access("delete_key", key))

    def num_keys(self) -> int:
        return self._access("num_keys")  # pyright: ignore[reportReturnType]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are set. Raises RuntimeError, as torch's own stores do, when time is up."""
        limit = self._timeout if timeout is None else timeout
        deadline, pause = time.monotonic() + limit.total_seconds(), _POLL_SECONDS[0]
        while not self.check(keys):
            if time.monotonic() > deadline:
                raise RuntimeError(f"wait timeout after {limit.total_seconds():g} s for keys {list(keys)}")
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS[1])

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout

    def clone(self) -> RankStore:
        return RankStore(self._access, self._timeout)


def _encoded(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def interface_of(address: str) -> str | None:
    """The name of this host's network interface that has `address` (IPv4 or IPv6), None if there is none."""
    families = {socket.AF_INET, socket.AF_INET6}
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family in families and each.address.partition("%")[0] == address:
                return name
    return None


def bind_to_interface(node_address: str, one_node: bool) -> None:
    """Make gloo and NCCL use the network of this node's address, unless the environment already names one.

    Left to itself gloo listens on the address that the host's *name* resolves to, which is often a loopback
    address that other hosts cannot reach. If all ranks are on one node gloo uses the loopback interface,
    which no other host can reach. Call it before the process group is created.

    Raises StateError if no interface has the node's address and ranks are on several nodes.
    """
    interface = interface_of(node_address)
    local = interface_of(LOOPBACK)
    gloo = local if one_node and local is not None else interface
    if gloo is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", gloo)
    elif not one_node and "GLOO_SOCKET_IFNAME" not in os.environ:
        raise StateError(
            f"No network interface of this host has the node's address {node_address}. Set GLOO_SOCKET_IFNAME"
            " (and NCCL_SOCKET_IFNAME) to the interface that the learner ranks share, before `ray start`."
        )
    if interface is not None:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
