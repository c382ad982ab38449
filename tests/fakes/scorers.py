"""Scorers that misbehave, loaded by dotted path: `tests.fakes.scorers:hangs`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.training.rewards.completion import Completion


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
    """What the text names."""
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
    """Raises the first time, over all processes: the prompt's reference names a file that remembers."""
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


class _SlowToLoad:
    """Loading takes longer than a rollout may: 10 s."""

    def prepare(self, references: Sequence[Mapping[str, Any]], /) -> None:
        time.sleep(10.5)

    def __call__(self, completion: Completion, /) -> float:
        return 1.0


slow_to_load = _SlowToLoad()
not_a_function = 3

Function = Callable[[Completion], float]
