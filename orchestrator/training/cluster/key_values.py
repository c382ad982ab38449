"""The keys and values through which learner ranks find each other; see `rank_store.py`. Imports no torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Literal

Operation = Literal["add", "append", "check", "compare_set", "delete_key", "get", "num_keys", "set"]


class KeyValues:
    """The keys and values behind a `RankStore`. Thread-safe; no operation waits."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def run(self, operation: Operation, *arguments: object) -> object:
        """Run one operation and return its result."""
        with self._lock:
            return getattr(self, f"_{operation}")(*arguments)

    def _set(self, key: str, value: bytes) -> None:
        self._values[key] = value

    def _get(self, key: str) -> bytes:
        return self._values[key]

    def _add(self, key: str, amount: int) -> int:
        total = int(self._values.get(key, b"0")) + amount
        self._values[key] = str(total).encode()
        return total

    def _append(self, key: str, value: bytes) -> None:
        self._values[key] = self._values.get(key, b"") + value

    def _compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """As `TCPStore`: an absent key is set if `expected` is empty, and otherwise stays absent."""
        current = self._values.get(key)
        if current is None and expected:
            return expected
        if current is None or current == expected:
            self._values[key] = current = desired
        return current

    def _check(self, keys: Sequence[str]) -> bool:
        return all(key in self._values for key in keys)

    def _delete_key(self, key: str) -> bool:
        return self._values.pop(key, None) is not None

    def _num_keys(self) -> int:
        return len(self._values)
