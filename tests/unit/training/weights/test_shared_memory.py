"""Weights in shared memory: between processes, and when processes end while publishing or reading."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from orchestrator.training.tensors.buckets import Allocate, Bucket, unflatten
from orchestrator.training.weights.channel import WeightsNotFoundError
from orchestrator.training.weights.shared_memory import SegmentHandle, SharedMemoryChannel
from tests.contracts.weight_channel_contract import pulled, same, source
from tests.fakes.side_process import SideProcess


@pytest.fixture
def channel() -> Generator[SharedMemoryChannel]:
    channel = SharedMemoryChannel()
    yield channel
    channel.close()


def _pull(answers: Connection, handle: SegmentHandle, value: float) -> None:
    answers.send(same(pulled(SharedMemoryChannel(), handle), value))


def test_another_process_reads_the_published_weights(channel: SharedMemoryChannel) -> None:
    handle = channel.publish(7, source(7.0))
    with closing(SideProcess(_pull, handle, 7.0)) as reader:
        assert reader.answer() is True


def _publish_and_wait(handles: Connection) -> None:
    channel = SharedMemoryChannel()
    handles.send(channel.publish(0, source(1.0)))
    handles.send(channel.publish(1, _stuck(handles)))


def _stuck(handles: Connection):
    def buckets(allocate: Allocate) -> Iterator[Bucket]:
        for bucket in source(2.0)(allocate):
            yield bucket
            handles.send("one bucket is written")
            signal.pause()

    return buckets


def test_a_publisher_killed_while_publishing_leaves_no_memory(channel: SharedMemoryChannel) -> None:
    """The previous version stays readable until then, and a reader in progress
    keeps it; then all memory is freed.
    """
    publisher = SideProcess(_publish_and_wait)
    handle = publisher.answer()
    assert publisher.answer() == "one bucket is written"
    assert same(pulled(channel, handle), 1.0)
    with closing(channel.pull(handle)) as buckets:
        reading = unflatten(buckets)
        read = [next(reading)]
        publisher.kill()
        read += [(name, tensor.clone()) for name, tensor in reading]
    assert len(read) == 9
    with pytest.raises(WeightsNotFoundError, match=f"version 0 are gone: /proc/{publisher.pid}/fd"):
        pulled(channel, handle)


def test_a_late_reader_gets_an_error(channel: SharedMemoryChannel) -> None:
    late = channel.publish(0, source(0.0))
    for version in (1, 2):
        channel.publish(version, source(version))
    with pytest.raises(WeightsNotFoundError, match="a newer version was written over it"):
        pulled(channel, late)


def test_a_reader_during_overwriting_gets_an_error(channel: SharedMemoryChannel) -> None:
    late = channel.publish(0, source(0.0))
    latest = channel.publish(1, source(1.0))

    def while_it_is_written(allocate: Allocate) -> Iterator[Bucket]:
        for bucket in source(2.0)(allocate):
            yield bucket
            with pytest.raises(WeightsNotFoundError, match="is being written over it"):
                pulled(channel, late)
            assert same(pulled(channel, latest), 1.0)

    assert same(pulled(channel, channel.publish(2, while_it_is_written)), 2.0)


def test_two_segments_alternate_and_one_that_is_being_read_is_replaced(channel: SharedMemoryChannel) -> None:
    """A reader keeps at most the last two segments that it read mapped."""
    before, reader = _segments(), SharedMemoryChannel()
    handles = [channel.publish(version, source(version)) for version in range(6)]
    assert _segments() - before == 2
    with closing(reader.pull(handles[4])) as buckets:
        next(buckets)
        handles += [channel.publish(version, source(version)) for version in (6, 7)]
        assert _segments() - before == 3
    for handle in handles[-2:]:
        pulled(reader, handle)
    assert _segments() - before == 2
    reader.close()
    channel.close()
    assert _segments() == before


def test_a_bucket_that_was_pulled_cannot_be_written(channel: SharedMemoryChannel) -> None:
    with closing(channel.pull(channel.publish(0, source(0.0)))) as buckets:
        assert not next(buckets).data.flags.writeable


def test_a_handle_with_a_reused_descriptor_gets_an_error(channel: SharedMemoryChannel) -> None:
    reads, writes = os.pipe()
    try:
        with pytest.raises(WeightsNotFoundError):
            pulled(channel, SegmentHandle(0, os.getpid(), reads, b"x" * 16))
    finally:
        os.close(reads)
        os.close(writes)


def test_a_handle_with_a_descriptor_of_a_short_file_gets_an_error(
    channel: SharedMemoryChannel, tmp_path: Path
) -> None:
    (tmp_path / "short").write_text("hello")
    with (tmp_path / "short").open() as short, pytest.raises(WeightsNotFoundError):
        pulled(channel, SegmentHandle(0, os.getpid(), short.fileno(), b"x" * 16))


def _segments() -> int:
    """Number of distinct segments that this process holds."""
    found: set[int] = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if "memfd:orchestrator-weights" in str(descriptor.readlink()):
                found.add(descriptor.stat().st_ino)
        except FileNotFoundError:
            continue
    return len(found)
