"""Requests for more or fewer rollout workers, as files in the run directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.runs.pool_requests import DamagedRequest, PoolRequest, make, new_request, take_all


def test_requests_are_taken_once_in_the_order_in_which_they_were_made(tmp_path: Path) -> None:
    folder = tmp_path / "requests"
    assert take_all(folder) == []
    made = [new_request(change, at_once) for change, at_once in ((2, False), (-1, True), (3, False))]
    for request in made:
        make(folder, request)
    assert take_all(folder) == made
    assert take_all(folder) == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rm -rf /",
        "[]",
        "{}",
        json.dumps({"change": 0, "at_once": False}),
        json.dumps({"change": 1001, "at_once": False}),
        json.dumps({"change": True, "at_once": False}),
        json.dumps({"change": 1.5, "at_once": False}),
        json.dumps({"change": "__import__('os').abort()", "at_once": False}),
        json.dumps({"change": 1, "at_once": "yes"}),
        "[" * 100_000,
        json.dumps({"change": 1, "at_once": False, "padding": "x" * 5000}),
    ],
)
def test_anything_else_is_data_that_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(text)
    (found,) = take_all(tmp_path)
    assert isinstance(found, DamagedRequest)
    assert (found.request_id, list(tmp_path.iterdir())) == ("1", [])


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "requests"
    make(folder, PoolRequest("2", 1))
    (folder / "2.json").rename(tmp_path / "elsewhere")
    (folder / "1.json").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "2.json")
    found = take_all(folder)
    assert [type(each) for each in found] == [DamagedRequest, DamagedRequest]
    assert (tmp_path / "elsewhere").exists()
