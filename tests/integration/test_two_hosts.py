"""Learner ranks on two hosts, which are network namespaces connected by a virtual cable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from multiprocessing.managers import BaseManager
from pathlib import Path

import pytest

from orchestrator.training.cluster.key_values import KeyValues

ADDRESSES = ("10.77.1.11", "10.77.1.12")
LONGEST = 300.0
"""Seconds for the ranks to connect and add up on a busy machine."""

RANK = """
import json, sys
from datetime import timedelta
from multiprocessing.managers import BaseManager

import torch
import torch.distributed as dist

from orchestrator.training.cluster.rank_store import RankStore, bind_to_interface
from orchestrator.training.learner.sharding.distributed import DistributedInit, join

class Keys(BaseManager): ...

Keys.register("keys")
rank, address, socket = json.loads(sys.argv[1])
server = Keys(socket, authkey=b"test")
server.connect()
bind_to_interface(address, one_node=False)
store = RankStore(server.keys().run, timedelta(seconds=60))
join(DistributedInit(rank, 2, "gloo", "cpu", store), threads=1)
sums = torch.full((3,), float(rank + 1))
dist.all_reduce(sums)
print(json.dumps(sums.tolist()), flush=True)
"""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _can_make_hosts() -> bool:
    name = f"orch-probe-{os.getpid()}"
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    _ip("netns", "del", name)
    return True


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _can_make_hosts(), reason="needs root and network namespaces"),
]


@pytest.fixture
def hosts() -> Generator[tuple[str, str]]:
    """Two namespaces with one address each. In both, the host's name still resolves to a loopback address."""
    names = (f"orch-a-{os.getpid()}", f"orch-b-{os.getpid()}")
    cables = (f"oa{os.getpid()}", f"ob{os.getpid()}")
    for name in names:
        _ip("netns", "add", name)
    try:
        _ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
            _ip("link", "set", cable, "netns", name)
            _ip("-n", name, "link", "set", cable, "name", "eth0")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", name, "link", "set", interface, "up")
        yield names
    finally:
        for name in names:
            _ip("netns", "del", name)


class KeysServer(BaseManager):
    """Serves the keys over a Unix socket in a folder that both hosts see."""


KEYS = KeyValues()
KeysServer.register("keys", lambda: KEYS)


def test_ranks_on_two_hosts_add_up(hosts: tuple[str, str], tmp_path: Path) -> None:
    socket = str(tmp_path / "keys")
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_SOCKET_IFNAME")}
    with KeysServer(socket, authkey=b"test"):
        ranks = [
            subprocess.Popen(
                [
                    "ip",
                    "netns",
                    "exec",
                    host,
                    sys.executable,
                    "-c",
                    RANK,
                    json.dumps([rank, address, socket]),
                ],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, (host, address) in enumerate(zip(hosts, ADDRESSES, strict=True))
        ]
        answers = [rank.communicate(timeout=LONGEST) for rank in ranks]
    assert [json.loads(out.splitlines()[-1]) for out, _ in answers] == [[3.0] * 3] * 2, answers
