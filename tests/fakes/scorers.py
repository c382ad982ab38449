"""Scorers that misbehave, loaded by dotted path: `tests.fakes.scorers:hangs`."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.training.rewards.completion import Completion, batched


def length(completion: Completion) -> float:
    return float(len(completion.text))


def raises(completion: Completion) -> float:
    if "bad" in completion.text:
        raise RuntimeError("no such proof")
    return 1.0


def exits(completion: Completion) -> float:
    if "bad" in completion.text:
        sys.exit(3)
    return 1.0


def hangs(completion: Completion) -> float:
    while "bad" in completion.text:
        time.sleep(60)
    return 1.0


def never_ends(completion: Completion) -> float:
    while True:
        time.sleep(60)


def dies(completion: Completion) -> float:
    if "bad" in completion.text:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 1.0


def leaves(completion: Completion) -> float:
    if "bad" in completion.text:
        os._exit(7)
    return 1.0


def returns_the_wrong_thing(completion: Completion) -> Any:
    """Returns the kind of value that the text names."""
    return {
        "nan": float("nan"),
        "inf": float("-inf"),
        "string": "1.0",
        "none": None,
        "huge": 10**400,
        "numpy": np.float32(0.5),
        "bool": True,
    }[completion.text]


def eats_memory(completion: Completion) -> float:
    return float(len(bytearray(1 << 36))) if "bad" in completion.text else 1.0


def fails_once(completion: Completion) -> float:
    """Raises the first time, over all processes: the prompt's reference names a
    file that marks the first call.
    """
    flag = Path(completion.prompt.reference["flag"])
    if not flag.exists():
        flag.touch()
        raise RuntimeError("not yet")
    return 1.0


def torch_is_loaded(completion: Completion) -> float:
    return float("torch" in sys.modules)


def process_id(completion: Completion) -> float:
    return float(os.getpid())


def prints(completion: Completion) -> float:
    print("a scorer printed this")  # noqa: T201
    return 1.0


async def length_later(completion: Completion) -> float:
    await asyncio.sleep(0)
    return float(len(completion.text))


@batched
def lengths(completions: Sequence[Completion]) -> list[float]:
    return [float(len(completion.text)) for completion in completions]


async def raises_later(completion: Completion) -> float:
    await asyncio.sleep(0)
    if "bad" in completion.text:
        raise RuntimeError("no such proof")
    return 1.0


@batched
def batch_raises(completions: Sequence[Completion]) -> list[float]:
    if any("bad" in completion.text for completion in completions):
        raise RuntimeError("no such proof")
    return [1.0 for _ in completions]


async def hangs_later(completion: Completion) -> float:
    """Ignores its cancellation."""
    while "bad" in completion.text:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
    return 1.0


async def blocks_the_loop(completion: Completion) -> float:
    while "bad" in completion.text:
        time.sleep(60)
    return 1.0


def judge(completion: Completion) -> float:
    """Waits for a server synchronously, as plain functions do."""
    time.sleep(0.2)
    return 1.0


async def judge_later(completion: Completion) -> float:
    await asyncio.sleep(0.2)
    return 1.0


def _arrive(completion: Completion) -> Callable[[], bool]:
    """Leave a mark. Returns whether all other rollouts of the prompt's group have left theirs."""
    folder, company = Path(completion.prompt.reference["folder"]), completion.prompt.reference["company"]
    (folder / completion.text).touch()
    return lambda: len(list(folder.iterdir())) >= company


def waits_for_company(completion: Completion) -> float:
    complete = _arrive(completion)
    while not complete():
        time.sleep(0.05)
    return 1.0


async def waits_for_company_later(completion: Completion) -> float:
    complete = _arrive(completion)
    while not complete():
        await asyncio.sleep(0.05)
    return 1.0


@batched
def company_in_a_batch(completions: Sequence[Completion]) -> list[float]:
    complete = [_arrive(each) for each in completions]
    return [float(each()) for each in complete]


def computes(completion: Completion) -> float:
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    return 1.0


async def dies_later(completion: Completion) -> float:
    await asyncio.sleep(0.05)
    return dies(completion)


@batched
def dies_in_a_batch(completions: Sequence[Completion]) -> list[float]:
    return [dies(completion) for completion in completions]


def holds_the_gil(completion: Completion) -> float:
    if "bad" in completion.text:
        ctypes.PyDLL(None).sleep(600)
    return 1.0


def starts_orphans(completion: Completion) -> float:
    """Starts a process in its own session, and one by a double fork. An absolute path as the answer is a file
    to which both add their process id before the scorer goes on. With "bad" in the answer it then hangs.
    """
    path = completion.text if completion.text.startswith("/") else os.devnull
    add_pid = 'echo $$ >> "$0"; exec sleep 600'
    subprocess.Popen(["sh", "-c", add_pid, path], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sh", ["sh", "-c", add_pid, path])
        os._exit(0)
    while path != os.devnull and (not Path(path).exists() or Path(path).read_text().count("\n") < 2):
        time.sleep(0.005)
    if "bad" in completion.text:
        holds_the_gil(completion)
    return 1.0


def sees_everything(completion: Completion) -> float:
    assert completion.prompt.columns == {"level": 5, "tests": ["x"]}
    assert completion.prefill == "<think>"
    assert completion.answer == "4"
    return 1.0


def sees_secrets(completion: Completion) -> float:
    return float(completion.text in os.environ)


def writes_a_file(completion: Completion) -> float:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 1_000_000)
    return 1.0


def _channel() -> int:
    """The descriptor of the channel to the parent process."""
    return int(sys.argv[1])


def sends(completion: Completion) -> float:
    """Sends the bytes that the text gives in hexadecimal to the parent, in place of the child process."""
    data = bytes.fromhex(completion.text)
    os.write(_channel(), data)
    time.sleep(600)
    return 1.0


def forges(completion: Completion) -> float:
    """Sends the JSON in the text as a message."""
    body = completion.text.encode()
    os.write(_channel(), len(body).to_bytes(4, "big") + body)
    time.sleep(600)
    return 1.0


def closes_the_channel(completion: Completion) -> float:
    if "bad" in completion.text:
        os.close(_channel())
        time.sleep(600)
    return 1.0


class _SlowToLoad:
    """Takes longer to load (10 s) than the timeout of a rollout."""

    def prepare(self, references: Sequence[Mapping[str, Any]], /) -> None:
        time.sleep(10.5)

    def __call__(self, completion: Completion, /) -> float:
        return 1.0


slow_to_load = _SlowToLoad()
not_a_function = 3

Function = Callable[[Completion], float]


def needs_tests(completion: Completion) -> float:
    return float(len(completion.prompt.columns["tests"]))


def two_arguments(completion: Completion, reference: str) -> float:
    return 1.0


def yields(completion: Completion) -> Iterator[float]:
    yield 1.0
