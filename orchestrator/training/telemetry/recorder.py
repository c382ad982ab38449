"""Writes rollouts to Parquet: one file per recorded step, one row per rollout. It runs in a
reward worker, next to the data.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.training.records import BatchPart, Finish, RecordKind, RolloutBlock, ScoreStatus
from orchestrator.training.telemetry.summary import ACCURACY, rows_of

SAMPLE_COLUMNS = [
    "prompt_id",
    "prompt",
    "response",
    "reward",
    "accuracy",
    "reflected",
    "length",
    "finish",
    "reason",
    "version",
]


class RolloutRecorder:
    """Writes the rollouts of a step in full, and samples a few of them for a tracker.

    Columns: `step group_id prompt_id prompt response reward accuracy reflected length finish grade
    reason traceback version` and `component/<name>` for every term of the rubric. `finish` and `grade`
    are lower-case names; `version` is the oldest among the rollout's tokens; `accuracy` and the
    components are null if scoring failed.
    """

    def record(
        self, step: int, parts: Sequence[BatchPart], directory: Path, kind: RecordKind = "step"
    ) -> Path:
        """Write `<directory>/<kind>-<step>.parquet` atomically and return its path. Raises
        OSError if the disk rejects it.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = recorded_path(directory, step, kind)
        tables = [_table(step, part) for part in parts]
        table = pa.concat_tables(tables, promote_options="permissive") if tables else _table_of({})
        # Not `.parquet`, so that no reader of the folder sees a file that is still being written.
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            pq.write_table(table, partial, compression="zstd")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def sample(self, parts: Sequence[BatchPart], k: int, seed: int) -> list[dict[str, Any]]:
        """Draw `k` rollouts (all if there are fewer) without replacement, in their order. The
        same seed draws the same ones.
        """
        places = [
            (part, int(row)) for part in parts for row in rows_of(part.groups, part.rollouts.group_size)
        ]
        chosen = sorted(random.Random(seed).sample(range(len(places)), min(k, len(places))))
        return [_row(*places[index]) for index in chosen]


def recorded_path(directory: Path, step: int, kind: RecordKind = "step") -> Path:
    """The path of a step's rollouts: `<directory>/step-000012.parquet`."""
    return directory / f"{kind}-{step:06d}.parquet"


def recorded_steps(directory: Path, kind: RecordKind = "step") -> list[int]:
    """The recorded steps, in order; empty if the folder is missing."""
    return sorted(int(path.stem.removeprefix(f"{kind}-")) for path in directory.glob(f"{kind}-*.parquet"))


def read_recorded(directory: Path, step: int, kind: RecordKind = "step") -> list[dict[str, Any]]:
    """Read the recorded rows of a step. Raises FileNotFoundError if it was not recorded."""
    return pq.ParquetFile(recorded_path(directory, step, kind)).read().to_pylist()


def _table(step: int, part: BatchPart) -> pa.Table:
    block, scores = part.rollouts, part.scores
    rows = rows_of(part.groups, block.group_size)
    groups = rows // block.group_size
    ungraded = scores.grades[rows] != ScoreStatus.OK
    components = {
        name: pa.array(values[rows], mask=ungraded | ~np.isfinite(values[rows]))
        for name, values in scores.components.items()
    }
    columns: dict[str, Any] = {
        "step": pa.array(np.full(len(rows), step, dtype=np.int64)),
        "group_id": pa.array(block.group_ids[groups]),
        "prompt_id": pa.array([block.prompts[group].prompt_id for group in groups], pa.string()),
        "prompt": _texts([block.prompts[group].text for group in groups]),
        "response": _texts([block.texts[row] for row in rows]),
        "reward": pa.array(scores.rewards[rows]),
        "reflected": pa.array(scores.reflected[rows]),
        "length": pa.array(block.lengths[rows]),
        "finish": pa.array([Finish(code).name.lower() for code in block.finish[rows]], pa.string()),
        "grade": pa.array([ScoreStatus(code).name.lower() for code in scores.grades[rows]], pa.string()),
        "reason": _texts([scores.reasons[row] for row in rows]),
        "traceback": _texts([scores.tracebacks[row] if scores.tracebacks else "" for row in rows]),
        "version": pa.array(_oldest_versions(block)[rows]),
    }
    if ACCURACY in components:
        columns["accuracy"] = components[ACCURACY]
    return _table_of(columns | {f"component/{name}": column for name, column in components.items()})


def _texts(values: Sequence[str]) -> pa.Array:
    """Escape lone surrogates, which Parquet cannot store."""
    return pa.array([value.encode(errors="backslashreplace").decode() for value in values], pa.string())


_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("group_id", pa.int64()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("reward", pa.float64()),
        ("accuracy", pa.float64()),
        ("reflected", pa.bool_()),
        ("length", pa.int64()),
        ("finish", pa.string()),
        ("grade", pa.string()),
        ("reason", pa.string()),
        ("traceback", pa.string()),
        ("version", pa.int64()),
    ]
)


def _table_of(columns: dict[str, Any]) -> pa.Table:
    """Build a table with the columns of the schema first, null where missing, then the components."""
    size = len(next(iter(columns.values()))) if columns else 0
    fixed = {field.name: columns.pop(field.name, pa.nulls(size, field.type)) for field in _SCHEMA}
    fields = [*_SCHEMA, *(pa.field(name, pa.float64()) for name in columns)]
    return pa.table([*fixed.values(), *columns.values()], schema=pa.schema(fields))


def _oldest_versions(block: RolloutBlock) -> NDArray[np.int64]:
    """The oldest version among each rollout's tokens, [N]; -1 for a rollout without tokens."""
    oldest = np.full(len(block), -1, dtype=np.int64)
    filled = np.flatnonzero(block.lengths > 0)
    if len(filled):
        # Empty rollouts have no tokens, so the starts of the others split `versions`
        # exactly at their boundaries.
        oldest[filled] = np.minimum.reduceat(block.versions, block.offsets[:-1][filled])
    return oldest


def _row(part: BatchPart, row: int) -> dict[str, Any]:
    one = BatchPart(part.rollouts, part.scores, (row // part.rollouts.group_size,))
    table = _table(0, one).slice(row % part.rollouts.group_size, 1).select(SAMPLE_COLUMNS)
    return table.to_pylist()[0]
