"""Weights over gloo: what happens to the others when one process dies, hangs or comes again."""

from __future__ import annotations

import pickle
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing

import pytest

from orchestrator.training.tensors.buckets import Allocate, Bucket
from orchestrator.training.weights.channel import WeightsNotFoundError
from orchestrator.training.weights.collective import THREAD_NAME, CollectiveChannel, CollectiveHandle
from tests.contracts.weight_channel_contract import pulled, same, source
from tests.contracts.weight_processes import HOST, PublisherProcess, PullsElsewhere, WorkerProcess

PATIENCE = 120.0
"""Seconds that nothing here may need: what is noticed sooner was not noticed by a time limit."""
SOON = 60.0


@pytest.fixture
def processes() -> Generator[ExitStack]:
    """What is entered here is closed at the end."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def channel() -> Generator[CollectiveChannel]:
    channel = CollectiveChannel(HOST, "gloo", PATIENCE)
    yield channel
    channel.close()


def _worker(processes: ExitStack, timeout_seconds: float = PATIENCE) -> WorkerProcess:
    return processes.enter_context(closing(WorkerProcess(timeout_seconds)))


def _publisher(processes: ExitStack, timeout_seconds: float = PATIENCE) -> PublisherProcess:
    return processes.enter_context(closing(PublisherProcess(timeout_seconds)))


def _serving() -> set[str]:
    """The publisher's threads that serve a worker."""
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if name.startswith(THREAD_NAME) and name != f"{THREAD_NAME}-listener"}


def test_a_worker_that_is_killed_in_the_middle_disturbs_neither_publisher_nor_others(
    channel: CollectiveChannel, processes: ExitStack
) -> None:
    one, other = _worker(processes), _worker(processes)
    handle = channel.publish(0, source(0.0))
    killed, going_on = one.pull(handle), other.pull(handle)
    first = [next(killed), next(going_on)]
    assert len(_serving()) == 2
    one.kill()
    assert [*first[1:], *going_on] != []
    assert same(pulled(PullsElsewhere(channel, other), channel.publish(1, source(1.0))), 1.0)
    _until(lambda: len(_serving()) == 1)
    again = _worker(processes)
    assert same(pulled(PullsElsewhere(channel, again), channel.publish(2, source(2.0))), 2.0)


def test_a_publisher_that_is_killed_in_the_middle_is_noticed_at_once(
    channel: CollectiveChannel, processes: ExitStack
) -> None:
    publisher = _publisher(processes)
    handle = publisher.publish(7)
    with closing(channel.pull(handle)) as buckets:
        next(buckets)
        publisher.signal(signal.SIGSTOP)  # so that the worker already waits when it dies
        timer = threading.Timer(0.3, publisher.kill)
        timer.start()
        started = time.monotonic()
        with pytest.raises(WeightsNotFoundError, match=rf"version 7 .* at {HOST}:{handle.port} is lost"):
            next(buckets)
        assert time.monotonic() - started < SOON
        timer.join()
    with pytest.raises(WeightsNotFoundError, match="refused"):
        pulled(channel, handle)


def test_a_publisher_that_hangs_is_given_up_in_time(processes: ExitStack) -> None:
    publisher = _publisher(processes)
    handle = publisher.publish(0)
    channel, limit = _joined_in_time(handle)
    publisher.signal(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(WeightsNotFoundError, match=r"(?i)timed out"):
        pulled(channel, handle)
    assert 0.9 * limit < time.monotonic() - started < limit + SOON
    publisher.signal(signal.SIGCONT)
    _until(lambda: _is_pulled(channel, handle))  # it is joined again
    channel.close()


def _joined_in_time(handle: CollectiveHandle) -> tuple[CollectiveChannel, float]:
    """A channel whose time limit is as short as this machine can join within, and that limit in seconds."""
    for limit in (1.0, 4.0, 16.0, 64.0):
        channel = CollectiveChannel(HOST, "gloo", limit)
        if _is_pulled(channel, handle):
            return channel, limit
        channel.close()
    pytest.fail("it can't be joined")


def _is_pulled(channel: CollectiveChannel, handle: CollectiveHandle) -> bool:
    """Whether the weights of value 0 come, in time."""
    try:
        return same(pulled(channel, handle), 0.0)
    except WeightsNotFoundError:
        return False


def test_workers_leave_a_publisher_for_the_one_that_came_after_it(processes: ExitStack) -> None:
    first, second, channel = _publisher(processes), _publisher(processes), _worker(processes)
    worker = PullsElsewhere(CollectiveChannel(HOST, "gloo", PATIENCE), channel)
    old = first.publish(5)
    assert same(pulled(worker, old), 5.0)
    first.kill()
    assert same(pulled(worker, second.publish(3)), 3.0), "after a restore the version may be lower"
    with pytest.raises(WeightsNotFoundError, match="version 5 are gone"):
        pulled(worker, old)


def test_a_connection_that_was_lost_between_two_versions_is_made_again(
    channel: CollectiveChannel, processes: ExitStack
) -> None:
    publisher = _publisher(processes)
    assert same(pulled(channel, publisher.publish(0)), 0.0)
    publisher.hang_up()
    assert same(pulled(channel, publisher.publish(1)), 1.0)


def test_a_version_that_was_pushed_out_is_gone(channel: CollectiveChannel) -> None:
    late, *_, latest = [channel.publish(version, source(version)) for version in range(3)]
    with pytest.raises(WeightsNotFoundError, match="version 0 are gone: newer versions pushed it out"):
        pulled(channel, late)
    assert same(pulled(channel, latest), 2.0)


def test_a_version_that_is_being_written_over_is_gone(channel: CollectiveChannel) -> None:
    late, latest = [channel.publish(version, source(version)) for version in range(2)]

    def while_it_is_written(allocate: Allocate) -> Iterator[Bucket]:
        for bucket in source(2.0)(allocate):
            yield bucket
            with pytest.raises(WeightsNotFoundError, match="is being written over it"):
                pulled(channel, late)
            assert same(pulled(channel, latest), 1.0)

    assert same(pulled(channel, channel.publish(2, while_it_is_written)), 2.0)


def test_a_worker_may_stop_in_the_middle_and_pull_again(channel: CollectiveChannel) -> None:
    handle = channel.publish(0, source(0.0))
    for _ in range(3):
        with closing(channel.pull(handle)) as buckets:
            next(buckets)
    assert same(pulled(channel, handle), 0.0)


def test_who_does_not_know_a_version_gets_nothing_of_it(channel: CollectiveChannel) -> None:
    handle = channel.publish(0, source(0.0))
    guess = CollectiveHandle(0, handle.host, handle.port, bytes(16))
    with pytest.raises(WeightsNotFoundError):
        pulled(channel, guess)
    assert len(pickle.dumps(handle)) < 300


def test_closing_ends_all_threads_and_the_workers_pulls(processes: ExitStack) -> None:
    channel, worker = CollectiveChannel(HOST, "gloo", PATIENCE), _worker(processes)
    handle = channel.publish(0, source(0.0))
    buckets = worker.pull(handle)
    next(buckets)
    started = time.monotonic()
    channel.close()
    assert time.monotonic() - started < SOON
    with pytest.raises(WeightsNotFoundError, match="is lost"):
        list(buckets)
    _until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((handle.host, handle.port), 1.0)


def _until(condition: object) -> None:
    deadline = time.monotonic() + SOON
    while not condition():  # pyright: ignore
        assert time.monotonic() < deadline
        time.sleep(0.01)
