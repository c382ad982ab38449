"""Reads questions from files: JSON Lines, Parquet, folders of either, and the Arrow folders that
Hugging Face `datasets` saves.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import DatasetError
from orchestrator.training.prompts.config import TaskConfig
from orchestrator.training.prompts.questions import Question, QuestionStream, normalised
from orchestrator.training.prompts.references import accepted_answers
from orchestrator.training.prompts.template import render

Row = tuple[str, Mapping[str, Any]]
"""The location of a row (`path:line`, for error messages) and its columns."""

MAX_LINE_BYTES = 16 * 2**20
"""Maximum length of a line of a JSON Lines file. No context holds a question of that size."""
MAX_DEPTH = 100
"""Maximum nesting depth of a row of a JSON Lines file."""

_SPLITS = ("train", "test", "validation")


def file_questions(config: TaskConfig) -> QuestionStream:
    """Read the rows of the file `path`, or of the files in the folder `path`, shuffled by `task.seed`.

    If a folder has a split `test` (or else `validation`) besides `train`, held-out questions come
    from it and training questions from `train`. Raises DatasetError, naming the file and its line,
    for data that cannot be read or used.
    """
    path = Path(config.path or "")
    if config.source == "dataset_folder":
        splits = _folder_splits(path)
    else:
        splits = {"train": [_existing(path, Path.is_file, "an existing file")]}
    heldout = next((splits[name] for name in ("test", "validation") if name in splits), None)
    return QuestionStream(
        questions=_shuffled(config, splits["train"]),
        heldout=None if heldout is None else _shuffled(config, heldout),
        endless=False,
        key=str(path),
        origin=str(path),
    )


def _shuffled(config: TaskConfig, files: Sequence[Path]) -> Iterator[Question]:
    questions = [_question(config, row) for file in files for row in _rows(file)]
    random.Random(f"files/{config.seed}").shuffle(questions)
    return iter(questions)


def _question(config: TaskConfig, row: Row) -> Question:
    where, columns = row
    text = _column(row, config.prompt_field)
    if not isinstance(text, str) or not text.strip():
        raise DatasetError(where, f"{config.prompt_field}: {text!r}", "a non-empty text")
    answer = accepted_answers(where, config.answer_field, _column(row, config.answer_field))
    hidden = {config.answer_field}
    solution = ""
    if config.solution_field is not None:
        hidden.add(config.solution_field)
        solution = str(_column(row, config.solution_field))
    fields = {**columns, "question": text}
    used = {config.prompt_field, *hidden}
    return Question(
        text=render(config.template, fields, hidden),
        content=normalised(text),
        fields=fields,
        reference={"answer": answer},
        solution=solution,
        columns={name: value for name, value in columns.items() if name not in used},
    )


def _column(row: Row, name: str) -> object:
    where, columns = row
    if name not in columns:
        raise DatasetError(where, f"no column {name!r}", f"one of its columns: {', '.join(sorted(columns))}")
    return columns[name]


def _existing(path: Path, exists: Callable[[Path], bool], what: str) -> Path:
    if not exists(path):
        raise DatasetError("task.path", str(path), what, f"looked in {Path.cwd()}")
    return path


# -- folders -------------------------------------------------------------------------------------------------


def _folder_splits(folder: Path) -> dict[str, list[Path]]:
    """Group the folder's files by split. Without a split to hold out, all of them are under `train`."""
    _existing(folder, Path.is_dir, "an existing folder")
    if (folder / "dataset_dict.json").is_file():
        names = _file_names(folder / "dataset_dict.json", lambda saved: saved["splits"])
        found = {name: _saved_files(folder / name) for name in names}
    elif (folder / "state.json").is_file():
        found = {"train": _saved_files(folder)}
    else:
        found = _by_name(folder)
    if "train" in found and len(found) > 1:
        return found
    return {"train": [file for files in found.values() for file in files]}


def _saved_files(folder: Path) -> list[Path]:
    """List the Arrow files of one dataset written by `save_to_disk`, in its order."""
    names = _file_names(
        folder / "state.json", lambda saved: [entry["filename"] for entry in saved["_data_files"]]
    )
    return [_existing(folder / name, Path.is_file, "the files that state.json lists") for name in names]


def _by_name(folder: Path) -> dict[str, list[Path]]:
    files = sorted(file for file in folder.rglob("*") if file.suffix in _READERS)
    if not files:
        raise DatasetError("task.path", str(folder), f"a folder with files of {', '.join(_READERS)}")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_name(file.relative_to(folder)), []).append(file)
    return found


def _split_name(file: Path) -> str:
    """Determine the split of a file: `data/test-00000-of-00001.parquet` and `test/0.jsonl` belong to `test`.
    Files whose path names no split belong to `train`.
    """
    for part in reversed(file.parts):
        for split in _SPLITS:
            if part == split or part.startswith((f"{split}-", f"{split}.", f"{split}_")):
                return split
    return "train"


def _file_names(path: Path, listed: Callable[[Any], list[Any]]) -> list[str]:
    """Read the names listed in a file of `save_to_disk`. Raises DatasetError for a file in another format,
    and for a name that points outside the folder.
    """
    try:
        names = listed(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DatasetError(str(path), "unreadable JSON", "a file written by save_to_disk", reason) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DatasetError(str(path), repr(name), "names of files and folders beside it")
    return names


# -- readers -------------------------------------------------------------------------------------------------


def _rows(file: Path) -> Iterator[Row]:
    try:
        yield from _READERS.get(file.suffix, _json_lines)(file)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            str(file), "unreadable", f"a file in the format of {file.suffix}", str(error)
        ) from error


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{file}:{number}"
            if len(line) > MAX_LINE_BYTES:
                raise DatasetError(where, "an oversized line", f"lines of at most {MAX_LINE_BYTES:,} bytes")
            if line.strip():
                yield where, _json_row(where, line)


def _json_row(where: str, line: bytes) -> Mapping[str, Any]:
    allowed = "one JSON object per line"
    try:
        row = json.loads(line)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
        raise DatasetError(where, line[:60].decode(errors="replace").rstrip(), allowed, str(error)) from error
    except RecursionError as error:
        raise _too_deep(where) from error
    if not isinstance(row, dict):
        raise DatasetError(where, type(row).__name__, allowed)
    # Counting brackets is cheap, and rows with that many are rare.
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(row) > MAX_DEPTH:
        raise _too_deep(where)
    return row


def _depth(value: object) -> int:
    """Levels of lists and objects in a JSON value."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        level = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
    return depth


def _too_deep(where: str) -> DatasetError:
    return DatasetError(where, "a row with deeper nesting", f"rows nested at most {MAX_DEPTH} levels deep")


def _parquet(file: Path) -> Iterator[Row]:
    return _record_batches(file, pq.ParquetFile(file).iter_batches())


def _arrow(file: Path) -> Iterator[Row]:
    with pa.OSFile(str(file)) as source:
        yield from _record_batches(file, pa.ipc.open_stream(source))


def _record_batches(file: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield f"{file}:{number}", row


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
