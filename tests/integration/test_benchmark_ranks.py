"""Processes that stand in for ranks exit cleanly, whatever the shutdown of the interpreter does to them."""

from __future__ import annotations

import atexit
import os
from pathlib import Path

import pytest
from torch.multiprocessing.spawn import ProcessRaisedException

from tests.support.ranks import start_ranks

pytestmark = pytest.mark.slow


def _write_then_abort_at_exit(rank: int, port: int, directory: str) -> None:
    atexit.register(os.abort)
    Path(directory, str(rank)).write_text(str(port))


def _raise(rank: int, port: int) -> None:
    if rank == 1:
        raise ValueError("rank 1 failed on purpose")


def test_an_abort_during_interpreter_shutdown_is_not_a_failed_rank(tmp_path: Path) -> None:
    start_ranks(2, _write_then_abort_at_exit, str(tmp_path))
    first, second = ((tmp_path / str(rank)).read_text() for rank in (0, 1))
    assert first == second


def test_the_error_of_a_rank_is_raised() -> None:
    with pytest.raises(ProcessRaisedException, match="rank 1 failed on purpose"):
        start_ranks(2, _raise)
