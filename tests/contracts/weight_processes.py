"""The two sides of the collective channel in processes of their own, told what to do through a pipe.

They are forked by a server that has imported torch and runs no thread: as fast as a fork of the test's own
process, whose threads (gloo's, those that serve) might hold a lock at that moment, for ever.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing as mp
import os
import signal
from collections.abc import Callable, Generator
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Any

import torch

from orchestrator.training.tensors.buckets import Bucket
from orchestrator.training.weights.channel import BucketSource, WeightsNotFoundError
from orchestrator.training.weights.collective import CollectiveChannel, CollectiveHandle
from orchestrator.training.weights.pairs import ControlConnection
from tests.contracts.weight_channel_contract import source

HOST = "127.0.0.1"
PRELOADED = ["__main__", "tests.contracts.weight_processes"]
LONGEST_ANSWER = 300.0
"""Seconds: longer than every time limit that is told to a process, so that its own error comes first."""


class SideProcess:
    """A process that does what it is told, and can be stopped, continued and killed."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_single_threaded, args=(work, theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def tell(self, what: object) -> None:
        self._pipe.send(what)

    def answer(self) -> Any:
        """What it says next. Raises EOFError if it has ended, and fails if it says nothing."""
        assert self._pipe.poll(LONGEST_ANSWER), f"process {self.pid} said nothing for {LONGEST_ANSWER:g} s"
        return self._pipe.recv()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.join(LONGEST_ANSWER)
        assert not self._process.is_alive()

    def close(self) -> None:
        if self._process.is_alive():
            self.kill()
        self._pipe.close()


class WorkerProcess(SideProcess):
    """A rollout worker: pulls, one bucket after the other, as its generator is read."""

    def __init__(self, timeout_seconds: float, gpu: int | None = None) -> None:
        """On `gpu` it goes over NCCL."""
        super().__init__(_pull_as_told, timeout_seconds, gpu)

    def pull(self, handle: CollectiveHandle) -> Generator[Bucket]:
        self.tell(handle)
        while (answer := self.answer()) is not None:
            if isinstance(answer, Exception):
                raise answer
            try:
                yield answer
            except GeneratorExit:
                with contextlib.suppress(OSError, EOFError):  # it was killed
                    self.tell("enough")
                    self.answer()
                raise
            self.tell("next")


class PublisherProcess(SideProcess):
    """Rank 0 of a learner: version v has the tensors of value v."""

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__(_publish_as_told, timeout_seconds)

    def publish(self, version: int) -> CollectiveHandle:
        self.tell(version)
        return self.answer()

    def hang_up(self) -> None:
        """Close all connections to workers, as a network that was down for a while does."""
        self.tell("hang up")
        self.answer()


class PullsElsewhere:
    """A channel whose publisher is this process and whose worker is another."""

    def __init__(self, channel: CollectiveChannel, worker: WorkerProcess) -> None:
        self._channel, self._worker = channel, worker

    def publish(self, version: int, source: BucketSource) -> CollectiveHandle:
        return self._channel.publish(version, source)

    def pull(self, handle: CollectiveHandle) -> Generator[Bucket]:
        return self._worker.pull(handle)

    def close(self) -> None:
        self._channel.close()


def _single_threaded(work: Callable[..., None], *arguments: object) -> None:
    torch.set_num_threads(1)  # the cores have enough to do
    work(*arguments)


def _pull_as_told(pipe: Connection, timeout_seconds: float, gpu: int | None) -> None:
    if gpu is not None:
        torch.cuda.set_device(gpu)
    channel = CollectiveChannel(HOST, "gloo" if gpu is None else "nccl", timeout_seconds)
    while True:
        handle = pipe.recv()
        try:
            with closing(channel.pull(handle)) as buckets:
                for bucket in buckets:
                    pipe.send(bucket)
                    if pipe.recv() != "next":
                        break
            pipe.send(None)
        except WeightsNotFoundError as error:
            pipe.send(error)


def _publish_as_told(pipe: Connection, timeout_seconds: float) -> None:
    channel = CollectiveChannel(HOST, "gloo", timeout_seconds)
    while True:
        told = pipe.recv()
        if told == "hang up":
            for line in [thing for thing in gc.get_objects() if isinstance(thing, ControlConnection)]:
                line.close()
            pipe.send(None)
        else:
            pipe.send(channel.publish(told, source(told)))
