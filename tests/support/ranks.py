"""Ranks as processes of this machine, for benchmarks and tests. On a cluster they are Ray actors."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable

import torch.distributed as dist
import torch.multiprocessing as mp
from torch._C._distributed_c10d import TCPStore

from tests.support.ports import quiet_ports


def start_ranks(world_size: int, main: Callable[..., None], *arguments: object) -> None:
    """Run `main(rank, port, *arguments)` to completion in one new process per rank; rank 0 listens on `port`
    of 127.0.0.1. Raises the error of a rank.
    """
    mp.start_processes(  # pyright: ignore[reportPrivateImportUsage] - public in the documentation
        _run_and_exit,
        args=(main, *quiet_ports(1), *arguments),
        nprocs=world_size,
        start_method="spawn",
    )


def tcp_store(rank: int, world_size: int, port: int) -> TCPStore | None:
    """A store on 127.0.0.1 through which ranks of this machine find each other; rank 0 listens. None in a
    process that has already joined its group and needs no further store.
    """
    if dist.is_initialized():
        return None
    timeout = datetime.timedelta(minutes=10)
    return TCPStore("127.0.0.1", port, world_size, is_master=rank == 0, timeout=timeout)


def _run_and_exit(rank: int, main: Callable[..., None], *arguments: object) -> None:
    """Run without Python's finalization. gloo's threads may still hold the tensors of the last collective,
    and releasing one from such a thread during finalization aborts the process
    (https://github.com/pytorch/pytorch/pull/179291). `destroy_process_group` would not join these threads,
    because DeepSpeed keeps groups in globals.
    """
    main(rank, *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
