"""How learner ranks find each other, and over which network interface."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from orchestrator.errors import StateError
from orchestrator.training.cluster import rank_store
from orchestrator.training.cluster.key_values import KeyValues
from orchestrator.training.cluster.rank_store import RankStore, bind_to_interface, interface_of
from orchestrator.training.learner.sharding.distributed import DistributedInit, join
from tests.fakes.side_process import SideProcess

SOON = timedelta(seconds=120)
AT_ONCE = timedelta(0)


@pytest.fixture
def store() -> RankStore:
    return RankStore(KeyValues().run, SOON)


def test_a_store_behaves_as_torch_expects(store: RankStore) -> None:
    store.set("a", "text")
    store.set("b", b"\x00bytes")
    assert (store.get("a"), store.get("b")) == (b"text", b"\x00bytes")
    assert (store.add("n", 2), store.add("n", 3), store.get("n")) == (2, 5, b"5")
    store.append("a", "+")
    assert store.get("a") == b"text+"
    assert store.check(["a", "b"])
    assert not store.check(["a", "missing"])
    assert store.num_keys() == 3
    assert store.delete_key("a")
    assert not store.delete_key("a")
    assert store.clone().get("b") == b"\x00bytes"


def test_a_value_is_replaced_only_if_it_is_the_expected_one(store: RankStore) -> None:
    assert store.compare_set("k", "expected", "new") == b"expected"
    assert not store.check(["k"])
    assert store.compare_set("k", "", "first") == b"first"
    assert store.compare_set("k", "other", "second") == b"first"
    assert store.compare_set("k", "first", "second") == b"second"


def test_a_key_that_another_rank_sets_later_is_waited_for(store: RankStore) -> None:
    threading.Timer(0.02, lambda: store.set("late", "value")).start()
    assert store.get("late") == b"value"


def test_a_key_that_nobody_sets_is_not_waited_for_longer_than_the_timeout(store: RankStore) -> None:
    with pytest.raises(RuntimeError, match=r"wait timeout after 0 s for keys \['never'\]"):
        store.wait(["never"], AT_ONCE)
    store.set_timeout(AT_ONCE)
    with pytest.raises(RuntimeError, match="never"):
        store.get("never")


def _interfaces(monkeypatch: pytest.MonkeyPatch, addresses: Mapping[str, list[str]]) -> None:
    def found() -> dict[str, list[SimpleNamespace]]:
        return {
            name: [
                SimpleNamespace(family=socket.AF_INET6 if ":" in each else socket.AF_INET, address=each)
                for each in each_address
            ]
            for name, each_address in addresses.items()
        }

    monkeypatch.setattr(rank_store.psutil, "net_if_addrs", found)


HOST = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.5", "10.0.0.6"], "ib0": ["fe80::1%ib0", "fd00::7"]}


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        ("10.0.0.5", "eth0"),
        ("10.0.0.6", "eth0"),
        ("fd00::7", "ib0"),
        ("fe80::1", "ib0"),
        ("127.0.0.1", "lo"),
        ("10.0.0.50", None),
    ],
)
def test_the_interface_of_an_address(
    monkeypatch: pytest.MonkeyPatch, address: str, interface: str | None
) -> None:
    _interfaces(monkeypatch, HOST)
    assert interface_of(address) == interface


def test_this_machine_has_a_loopback_interface() -> None:
    assert interface_of("127.0.0.1") == "lo"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This host has the interfaces of `HOST`, and the environment names none of them."""
    _interfaces(monkeypatch, HOST)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    return monkeypatch


def _chosen() -> tuple[str | None, str | None]:
    return os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("NCCL_SOCKET_IFNAME")


@pytest.mark.usefixtures("host")
def test_ranks_on_several_nodes_use_the_network_of_the_nodes_address() -> None:
    bind_to_interface("10.0.0.5", one_node=False)
    assert _chosen() == ("eth0", "=eth0")


@pytest.mark.usefixtures("host")
def test_ranks_on_one_node_are_not_reachable_from_others() -> None:
    bind_to_interface("10.0.0.5", one_node=True)
    assert _chosen() == ("lo", "=eth0")


def test_settings_of_the_environment_are_kept(host: pytest.MonkeyPatch) -> None:
    host.setenv("GLOO_SOCKET_IFNAME", "ib0")
    host.setenv("NCCL_SOCKET_IFNAME", "ib")
    bind_to_interface("10.0.0.5", one_node=False)
    bind_to_interface("192.0.2.1", one_node=False)
    assert _chosen() == ("ib0", "ib")


@pytest.mark.usefixtures("host")
def test_an_address_behind_nat_is_rejected_with_the_setting_to_use() -> None:
    with pytest.raises(StateError, match=r"node's address 192\.0\.2\.1\. Set GLOO_SOCKET_IFNAME"):
        bind_to_interface("192.0.2.1", one_node=False)
    bind_to_interface("192.0.2.1", one_node=True)
    assert _chosen() == ("lo", None)


class KeysServer(BaseManager):
    """Serves the keys to other processes, like rank 0's actor."""


KeysServer.register("KeyValues", KeyValues)


def _add_up(pipe: Connection, rank: int, keys: Any) -> None:
    bind_to_interface("127.0.0.1", one_node=True)
    join(DistributedInit(rank, 2, "gloo", "cpu", RankStore(keys.run, SOON)), threads=1)
    sums = torch.full((3,), float(rank + 1))
    dist.all_reduce(sums)
    pipe.send(sums.tolist())
    pipe.poll(None)  # until this process is killed: the other rank may still read from its connection


@pytest.mark.slow
def test_ranks_in_two_processes_find_each_other_through_it() -> None:
    with KeysServer() as server:
        keys: Any = server.KeyValues()  # pyright: ignore[reportAttributeAccessIssue] - registered above
        ranks = [SideProcess(_add_up, rank, keys) for rank in range(2)]
        assert [rank.answer() for rank in ranks] == [[3.0] * 3] * 2
        for rank in ranks:
            rank.close()
