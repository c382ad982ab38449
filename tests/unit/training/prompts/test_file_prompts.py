from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.errors import ConfigError, DatasetError
from orchestrator.training.prompts import files
from orchestrator.training.prompts.config import TaskConfig
from orchestrator.training.prompts.load import load_prompts
from orchestrator.training.prompts.solutions import SOLUTIONS

ROWS = [{"q": f"{n} + {n} = ?", "a": str(2 * n), "why": f"{n}+{n}={2 * n}"} for n in range(30)]


def task(source: str, path: Path, **changes: Any) -> TaskConfig:
    values: dict[str, Any] = {
        "name": "mine",
        "source": source,
        "dataset": None,
        "options": {},
        "path": str(path),
        "prompt_field": "q",
        "answer_field": "a",
        "solution_field": "why",
        "template": "Q: {question}",
        "solutions": None,
        "train_size": 20,
        "heldout_size": 10,
        "seed": 0,
    }
    return TaskConfig(**(values | changes))


def write_jsonl(path: Path, rows: Sequence[Any] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def save_to_disk(folder: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    """The layout of Hugging Face `datasets`: an Arrow stream, and state.json that names it."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    )
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_one_row_one_prompt(tmp_path: Path) -> None:
    source = load_prompts(task("jsonl", write_jsonl(tmp_path / "a.jsonl")), seed=0)
    prompt = source.take(1)[0]
    n = int(prompt.text.split()[1])
    assert prompt.text == f"Q: {n} + {n} = ?"
    assert prompt.reference == {"answer": str(2 * n)}
    assert prompt.solution == f"{n}+{n}={2 * n}"


def test_all_formats_give_the_same_prompts(tmp_path: Path) -> None:
    configs = [
        task("jsonl", write_jsonl(tmp_path / "a.jsonl")),
        task("parquet", write_parquet(tmp_path / "a.parquet")),
        task("dataset_folder", save_to_disk(tmp_path / "saved")),
        task("dataset_folder", write_parquet(tmp_path / "folder" / "data" / "x.parquet").parent),
    ]
    sources = [load_prompts(config, seed=0) for config in configs]
    assert len({source.digest for source in sources}) == 1


def test_splits_of_a_saved_dataset_stay_apart(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "train", ROWS[:20])
    save_to_disk(tmp_path / "test", ROWS[20:])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = load_prompts(task("dataset_folder", tmp_path), seed=0)
    assert {p.text for p in source.heldout(10)} == {f"Q: {row['q']}" for row in ROWS[20:]}


def test_splits_by_file_name_stay_apart(tmp_path: Path) -> None:
    write_parquet(tmp_path / "main" / "train-00000-of-00001.parquet", ROWS[:20])
    write_jsonl(tmp_path / "main" / "validation.jsonl", ROWS[20:])
    source = load_prompts(task("dataset_folder", tmp_path), seed=0)
    assert {p.text for p in source.heldout(10)} == {f"Q: {row['q']}" for row in ROWS[20:]}


def test_a_single_split_is_divided(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert len(load_prompts(task("dataset_folder", tmp_path), seed=0)) == 20


@pytest.mark.parametrize("line", ['{"q": "1", "a"', "[1, 2]", b"\xff\xfe"])
def test_a_broken_line_is_named(tmp_path: Path, line: str | bytes) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS[:2])
    broken = line.encode() if isinstance(line, str) else line
    path.write_bytes(path.read_bytes() + b"\n" + broken + b"\n")
    with pytest.raises(DatasetError, match=rf"^{path}:4: got .*allowed: one JSON object per line"):
        load_prompts(task("jsonl", path), seed=0)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"a": "1", "why": ""}, "no column 'q', allowed: one of its columns: a, why"),
        ({"q": "x", "why": ""}, "no column 'a'"),
        ({"q": "x", "a": "1"}, "no column 'why'"),
        ({"q": "  ", "a": "1", "why": ""}, "q: '  ', allowed: a non-empty text"),
        ({"q": 5, "a": "1", "why": ""}, "q: 5"),
        ({"q": "x", "a": None, "why": ""}, "a: None, allowed: a text, a number"),
        ({"q": "x", "a": "", "why": ""}, "a: '', allowed: a text, a number, or a list of accepted answers"),
        ({"q": "x", "a": " \n", "why": ""}, r"a: ' \\n', .* \(the answer is empty\)"),
        ({"q": "x", "a": "\ufeff\u200b", "why": ""}, r"a: '\\ufeff\\u200b', .* \(the answer is empty\)"),
        ({"q": "x", "a": "6*7=42 #### ", "why": ""}, r"a: '6\*7=42 #### ', .* \(the answer is empty\)"),
        ({"q": "x", "a": True, "why": ""}, "a: True, allowed: a text, a number"),
        ({"q": "x", "a": float("nan"), "why": ""}, "a: nan, allowed: a text, a number"),
        ({"q": "x", "a": float("inf"), "why": ""}, "a: inf"),
        ({"q": "x", "a": {"b": 1}, "why": ""}, r"a: \{'b': 1\}"),
        ({"q": "x", "a": [], "why": ""}, r"a: \[\], .* \(an empty list accepts no answer\)"),
        ({"q": "x", "a": ["65", ""], "why": ""}, "a: ''"),
        ({"q": "x", "a": [[1]], "why": ""}, r"a: \[1\]"),
    ],
)
def test_a_row_with_missing_or_invalid_columns_is_named(
    tmp_path: Path, row: dict[str, Any], what: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], row])
    with pytest.raises(DatasetError, match=rf"^{path}:2: got {what}"):
        load_prompts(task("jsonl", path), seed=0)


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least one question"):
        load_prompts(task("jsonl", write_jsonl(tmp_path / "a.jsonl", [])), seed=0)


@pytest.mark.parametrize("source", ["jsonl", "parquet", "dataset_folder"])
def test_a_missing_path(tmp_path: Path, source: str) -> None:
    with pytest.raises(DatasetError, match=r"task.path: got .*nowhere, allowed: an existing"):
        load_prompts(task(source, tmp_path / "nowhere"), seed=0)


def test_a_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(DatasetError, match=r"a folder with files of .jsonl, .parquet, .arrow"):
        load_prompts(task("dataset_folder", tmp_path), seed=0)


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("not parquet")
    with pytest.raises(DatasetError, match=r"a file in the format of \.parquet"):
        load_prompts(task("parquet", path), seed=0)


def test_a_saved_dataset_with_a_missing_file_is_rejected(tmp_path: Path) -> None:
    save_to_disk(tmp_path)
    (tmp_path / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DatasetError, match=r"the files that state.json lists"):
        load_prompts(task("dataset_folder", tmp_path), seed=0)


def test_a_broken_state_json(tmp_path: Path) -> None:
    (save_to_disk(tmp_path) / "state.json").write_text("{")
    with pytest.raises(DatasetError, match=r"state.json: got unreadable"):
        load_prompts(task("dataset_folder", tmp_path), seed=0)


def test_too_few_rows_are_reported_with_their_number(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS[:12] * 3)
    with pytest.raises(ConfigError, match="10 held-out prompts and 2 for training"):
        load_prompts(task("jsonl", path), seed=0)


@pytest.mark.parametrize("field", ["a", "why"])
def test_a_template_with_the_answer_is_rejected(tmp_path: Path, field: str) -> None:
    config = task("jsonl", write_jsonl(tmp_path / "a.jsonl"), template=f"{{question}} {{{field}}}")
    with pytest.raises(ConfigError, match=r"task\.template"):
        load_prompts(config, seed=0)


@pytest.mark.parametrize("answer", [["65"], ["65", "sixty-five", 65.0], 0, "0", 1.5])
def test_a_reference_may_be_a_list_of_accepted_answers(tmp_path: Path, answer: Any) -> None:
    rows = [{**row, "a": answer} for row in ROWS]
    prompt = load_prompts(task("jsonl", write_jsonl(tmp_path / "a.jsonl", rows)), seed=0).take(1)[0]
    assert prompt.reference == {"answer": answer}


def test_a_parquet_decimal_is_a_valid_answer(tmp_path: Path) -> None:
    rows = [{**row, "a": Decimal("1.50")} for row in ROWS]
    prompt = load_prompts(task("parquet", write_parquet(tmp_path / "a.parquet", rows)), seed=0).take(1)[0]
    assert prompt.reference == {"answer": "1.50"}


def test_scorers_get_the_other_columns_as_json(tmp_path: Path) -> None:
    """Dates and decimals become text and bytes null, because the columns are sent
    to the scorer processes as JSON.
    """
    more = {"level": 3, "tests": ["a", "b"], "day": date(2026, 11, 30), "image": {"bytes": b"x"}}
    rows = [{**row, **more} for row in ROWS]
    prompt = load_prompts(task("parquet", write_parquet(tmp_path / "a.parquet", rows)), seed=0).take(1)[0]
    assert prompt.columns == {
        "level": 3, "tests": ["a", "b"], "day": "2026-11-30", "image": {"bytes": None},
    }  # fmt: skip


def test_question_answer_and_solution_are_not_passed_as_columns(tmp_path: Path) -> None:
    source = load_prompts(task("jsonl", write_jsonl(tmp_path / "a.jsonl")), seed=0)
    assert all(prompt.columns == {} for prompt in source.all_prompts)


@pytest.mark.parametrize("levels", [101, 200_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_row_that_is_nested_too_deeply_is_refused(tmp_path: Path, levels: int, opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    path = write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    nested = opening * (levels - 1) + "1" + closing * (levels - 1)
    path.write_text(path.read_text() + f'{{"q": "x", "a": "1", "why": "", "deep": {nested}}}\n')
    with pytest.raises(DatasetError, match=rf"^{path}:2: .*allowed: rows nested at most 100 levels deep"):
        load_prompts(task("jsonl", path), seed=0)


def test_a_row_with_many_brackets_may_be_flat(tmp_path: Path) -> None:
    rows = [{**row, "grid": [[n] for n in range(200)]} for row in ROWS]
    prompt = load_prompts(task("jsonl", write_jsonl(tmp_path / "a.jsonl", rows)), seed=0).take(1)[0]
    assert prompt.columns["grid"][199] == [199]


def test_an_oversized_line_is_rejected_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100)
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], {**ROWS[1], "q": "x" * 1000}])
    with pytest.raises(DatasetError, match=rf"^{path}:2: .*allowed: lines of at most 100 bytes"):
        load_prompts(task("jsonl", path), seed=0)


@pytest.mark.parametrize(
    "state",
    [
        "[" * 100_000,
        "{}",
        '{"_data_files": 3}',
        '{"_data_files": [{"filename": 3}]}',
        '{"_data_files": [{"filename": "../secret.arrow"}]}',
        '{"_data_files": [{"filename": "/etc/passwd"}]}',
    ],
)
def test_an_invalid_state_json_is_rejected(tmp_path: Path, state: str) -> None:
    (save_to_disk(tmp_path) / "state.json").write_text(state)
    with pytest.raises(DatasetError, match=r"state.json: got"):
        load_prompts(task("dataset_folder", tmp_path), seed=0)


@pytest.mark.parametrize(
    ("template", "warned"),
    [
        (r"{question}\nAnswer:", True),
        (r"{question}\n\nthink", True),
        ("{question}\nAnswer:", False),
        (r"{question} Write $a \neq b$ and $\nu$.", False),
    ],
)
def test_an_escaped_newline_in_a_template_logs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, template: str, warned: bool
) -> None:
    load_prompts(task("jsonl", write_jsonl(tmp_path / "a.jsonl"), template=template), seed=0)
    assert ("backslash followed by n" in caplog.text) is warned


def test_a_writer_that_fails_on_a_question_is_reported_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def third_party(row: Mapping[str, Any], rng: random.Random) -> str:
        return str({}["expression"])

    monkeypatch.setattr(SOLUTIONS, "get", {"theirs": third_party}.__getitem__)
    config = task("jsonl", write_jsonl(tmp_path / "a.jsonl"), solutions="theirs", solution_field=None)
    with pytest.raises(ConfigError, match=r"task.solutions: got theirs, .*\(mine/train/0: KeyError"):
        load_prompts(config, seed=0)
    assert len(load_prompts(config, seed=0, with_solutions=False)) == 20
