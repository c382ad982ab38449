"""Questions of a user's own data: JSON lines, Parquet, and folders of either or of Arrow files as Hugging
Face `datasets` saves them."""

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
from orchestrator.training.prompts.template import render

Row = tuple[str, Mapping[str, Any]]
"""Where a row is (`path:line`, for errors), and its fields."""

_SPLITS = ("train", "test", "validation")


def file_questions(config: TaskConfig) -> QuestionStream:
    """The rows of the file `path`, or of the files in the folder `path`, in an order seeded by `task.seed`.

    A folder with a split `test` (else `validation`) beside `train` keeps them apart: held-out questions come
    from it, training questions from `train`. Raises DatasetError, naming the file and its line, if anything
    can't be read.
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
    where, fields = row
    text = _field(row, config.prompt_field)
    if not isinstance(text, str) or not text.strip():
        raise DatasetError(where, f"{config.prompt_field}: {text!r}", "a text that is not empty")
    answer = _field(row, config.answer_field)
    if not isinstance(answer, str | int | float):
        raise DatasetError(where, f"{config.answer_field}: {answer!r}", "a text or a number")
    hidden = {config.answer_field}
    solution = ""
    if config.solution_field is not None:
        hidden.add(config.solution_field)
        solution = str(_field(row, config.solution_field))
    fields = {**fields, "question": text}
    return Question(
        text=render(config.template, fields, hidden),
        content=normalised(text),
        fields=fields,
        reference={"answer": answer},
        solution=solution,
    )


def _field(row: Row, name: str) -> object:
    where, fields = row
    if name not in fields:
        raise DatasetError(where, f"no field {name!r}", f"one of its fields: {', '.join(sorted(fields))}")
    return fields[name]


def _existing(path: Path, exists: Callable[[Path], bool], what: str) -> Path:
    if not exists(path):
        raise DatasetError("task.path", str(path), what, f"looked in {Path.cwd()}")
    return path


# -- folders -------------------------------------------------------------------------------------------------


def _folder_splits(folder: Path) -> dict[str, list[Path]]:
    """The folder's files by split; all under `train` if it has no split to hold out."""
    _existing(folder, Path.is_dir, "an existing folder")
    if (folder / "dataset_dict.json").is_file():
        names = _read_json(folder / "dataset_dict.json")["splits"]
        found = {name: _saved_files(folder / name) for name in names}
    elif (folder / "state.json").is_file():
        found = {"train": _saved_files(folder)}
    else:
        found = _by_name(folder)
    if "train" in found and len(found) > 1:
        return found
    return {"train": [file for files in found.values() for file in files]}


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files of one dataset that `save_to_disk` wrote, in its order."""
    files = [folder / entry["filename"] for entry in _read_json(folder / "state.json")["_data_files"]]
    return [_existing(file, Path.is_file, "the files that state.json lists") for file in files]


def _by_name(folder: Path) -> dict[str, list[Path]]:
    files = sorted(file for file in folder.rglob("*") if file.suffix in _READERS)
    if not files:
        raise DatasetError("task.path", str(folder), f"a folder with files of {', '.join(_READERS)}")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_name(file.relative_to(folder)), []).append(file)
    return found


def _split_name(file: Path) -> str:
    """`data/test-00000-of-00001.parquet` and `test/0.jsonl` are of the split test; what names none is for
    training."""
    for part in reversed(file.parts):
        for split in _SPLITS:
            if part == split or part.startswith((f"{split}-", f"{split}.", f"{split}_")):
                return split
    return "train"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(str(path), "unreadable JSON", "what save_to_disk wrote", str(error)) from error


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
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
                excerpt = line[:60].decode(errors="replace").rstrip()
                raise DatasetError(where, excerpt, "one JSON object a line", str(error)) from error
            if not isinstance(row, dict):
                raise DatasetError(where, type(row).__name__, "one JSON object a line")
            yield where, row


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
