"""vLLM's processes end with the worker that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection

import pytest

from orchestrator.training.rollouts.engines.vllm.processes import end_with_parent

SECONDS = 120


def _engine(pipe: Connection) -> None:
    end_with_parent()
    pipe.send(os.getpid())
    time.sleep(3600)


def _worker(pipe: Connection) -> None:
    multiprocessing.get_context("spawn").Process(target=_engine, args=(pipe,)).start()
    time.sleep(3600)


@pytest.mark.slow
def test_a_process_of_a_killed_worker_ends() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_worker, args=(theirs,))
    worker.start()
    theirs.close()
    engine = ours.recv()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    assert ours.poll(SECONDS), "the engine's process goes on"
    with pytest.raises(EOFError):  # the last process that holds the pipe is gone
        ours.recv()
    assert engine != worker.pid


def test_a_process_without_a_parent_watches_nothing() -> None:
    before = threading.enumerate()
    end_with_parent()
    assert threading.enumerate() == before
