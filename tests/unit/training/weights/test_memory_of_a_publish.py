"""Neither side of a channel holds a second copy of the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from orchestrator.training.tensors.buckets import flatten, unflatten
from orchestrator.training.weights.channel import WeightChannel
from orchestrator.training.weights.shared_memory import SharedMemoryChannel

BUCKET = 4 << 20
SIZES = (24 << 20, *[3 << 20] * 12)
"""Bytes of the tensors: one that fits no bucket, and many that do; 60 MiB in total."""


def peak_of(work: Callable[[], object]) -> float:
    """The maximum of the private memory (RssAnon) during `work` and with its result,
    minus that before, in buckets.
    """
    highest, done = [private_bytes()], threading.Event()
    start = highest[0]

    def watch() -> None:
        while not done.is_set():
            highest.append(private_bytes())
            time.sleep(0.0002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        kept = work()
        highest.append(private_bytes())
        del kept
    finally:
        done.set()
        watcher.join()
    return (max(highest) - start) / BUCKET


def private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("make", [SharedMemoryChannel])
def test_publish_and_pull_need_at_most_one_bucket_of_extra_memory(
    make: Callable[[], WeightChannel],
) -> None:
    state = {str(index): torch.full((size // 4,), 1.0) for index, size in enumerate(SIZES)}
    engine = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for tensor in engine.values():
        tensor.fill_(0.5)  # allocates its pages
    learner, worker = make(), make()

    def publish(version: int) -> object:
        return learner.publish(version, lambda allocate: flatten(state.items(), BUCKET, allocate))

    def load(handle: object) -> None:
        with closing(worker.pull(handle)) as buckets:
            for name, tensor in unflatten(buckets, engine.get):
                if tensor.data_ptr() != engine[name].data_ptr():
                    engine[name].copy_(tensor)

    handle = publish(0)
    assert peak_of(lambda: publish(1)) <= 1.2
    assert peak_of(lambda: load(handle)) <= 1.2
    assert all(torch.equal(engine[name], state[name]) for name in state)
    assert peak_of(lambda: torch.ones(8 * BUCKET // 4)) > 7, "a copy would be seen"
    learner.close()
    worker.close()
