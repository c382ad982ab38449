"""Pauses Python's cyclic garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def paused() -> Generator[None]:
    """Run a batch without the cyclic garbage collector.

    Parsing and booking create hundreds of thousands of small objects and no cycles. Without a pause the
    collector spends a third of the time scanning them in vain.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
