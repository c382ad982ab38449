"""Writes rollouts that could not be scored to disk immediately, so that they are readable even if they stop
the run, and before their step is recorded.

Each reward worker appends to its own file, `rollouts/failed-<worker>.jsonl`, one JSON object per rollout.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.training.records import Finish, RolloutBlock, ScoreBlock, ScoreStatus

MOST_WRITTEN = 500
"""Maximum number of failures that one process of a worker writes. A scorer that
always fails adds nothing new.
"""
SHOWN_RESPONSE = 2000

log = logging.getLogger(__name__)


def failed_rollouts(step: int, block: RolloutBlock, scores: ScoreBlock) -> Iterator[dict[str, Any]]:
    """Yield the rollouts of a block that could not be scored, with all known details."""
    for row, grade in enumerate(scores.grades.tolist()):
        if grade != ScoreStatus.OK:
            group = row // block.group_size
            start, end = int(block.offsets[row]), int(block.offsets[row + 1])
            yield {
                "step": step,
                "group_id": int(block.group_ids[group]),
                "prompt_id": block.prompts[group].prompt_id,
                "prompt": block.prompts[group].text,
                "response": block.texts[row],
                "reward": float(scores.rewards[row]),
                "accuracy": None,
                "reflected": bool(scores.reflected[row]),
                "length": end - start,
                "finish": Finish(int(block.finish[row])).name.lower(),
                "grade": ScoreStatus(grade).name.lower(),
                "reason": scores.reasons[row],
                "traceback": scores.tracebacks[row] if scores.tracebacks else "",
                "version": int(block.versions[start:end].min()) if end > start else -1,
            }


def describe_failure(failed: dict[str, Any]) -> str:
    """Format a failed rollout for people: what went wrong, where, and the response."""
    response = str(failed["response"])
    cut = "..." if len(response) > SHOWN_RESPONSE else ""
    lines = [
        f"{failed['prompt_id']} ({failed['grade']}): {failed['reason']}",
        *str(failed["traceback"]).splitlines(),
        f"response: {response[:SHOWN_RESPONSE]}{cut}",
    ]
    return "\n".join(lines)


class FailureLog:
    """Appends failed rollouts to `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = MOST_WRITTEN

    def write(self, step: int, block: RolloutBlock, scores: ScoreBlock) -> str:
        """Write the block's failures. Returns a description of the first one, empty if there is none. An
        error of the disk loses the record but does not stop the run.
        """
        failures = list(failed_rollouts(step, block, scores))
        if not failures:
            return ""
        described = describe_failure(failures[0])
        log.error("%d of %d rollouts could not be scored. Example: %s", len(failures), len(block), described)
        kept, self._left = failures[: self._left], max(self._left - len(failures), 0)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(each) + "\n" for each in kept)
        except OSError as error:
            log.warning("failed rollouts were not recorded: %s", error)
        return described


def read_failures(directory: Path) -> list[dict[str, Any]]:
    """Read the failed rollouts of a run, in step order; empty if there are none. A line that is
    still being written is skipped.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(directory.glob("failed-*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return sorted(rows, key=lambda row: row["step"])
