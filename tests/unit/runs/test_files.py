"""Logs of one JSON object per line, whose last line a crash may have cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.runs.files import append_line, cut_half_line, whole_lines


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", b""),
        (b"one\ntwo\n", b"one\ntwo\n"),
        (b"one\ntw", b"one\n"),
        (b"half a line and nothing else", b""),
        (b"one\n" + b"x" * 200_000, b"one\n"),  # longer than the blocks in which the end is read
        (b"y" * 70_000 + b"\n" + b"x" * 70_000, b"y" * 70_000 + b"\n"),
    ],
    ids=["empty", "whole", "cut", "only half a line", "long half line", "newline in an earlier block"],
)
def test_only_whole_lines_are_kept(content: bytes, kept: bytes, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(content)
    cut_half_line(log)
    assert log.read_bytes() == kept


def test_a_line_appended_after_a_crash_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"a":1}\n{"a":')
    cut_half_line(log)
    append_line(log, {"a": 2})
    assert list(whole_lines(log)) == [b'{"a":1}\n', b'{"a":2}\n']


def test_a_missing_log_is_not_created(tmp_path: Path) -> None:
    cut_half_line(tmp_path / "log.jsonl")
    assert not (tmp_path / "log.jsonl").exists()
