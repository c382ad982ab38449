"""Imports: each line counts once, in any format; errors are reported without affecting other lines."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import create_engine, text

from orchestrator.ledger.calendar import HOUR_NS
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import UsageStated
from orchestrator.ledger.imports import csv, hostlist, mlflow, slurm
from orchestrator.ledger.imports.statements import Imported, Lines, take
from orchestrator.ledger.labels import UNLABELLED, Labels
from orchestrator.ledger.ledger import Ledger

PRICES: dict[str, Any] = {
    "name": "test",
    "currency": "USD",
    "region": "here",
    "commitment": "on_demand",
    "prices": [
        {
            "sku": sku,
            "resource": "gpu",
            "region": "here",
            "commitment": "on_demand",
            "amount": amount,
            "currency": "USD",
            "from": "2020-01-01",
            "to": None,
            "source": "made up",
            "retrieved": "2026-01-01",
        }
        for sku, amount in (("H800", "2"), ("h100", "3"), ("cpu-slot", "0.04"), ("gpu", "1"))
    ],
}
HEADER = ",".join(csv.COLUMNS)


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


DAY = ns("2026-11-23")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """In SQLite, because booked events must also be readable again."""
    return Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}", PRICES)


def row(**cells: str) -> str:
    values = {"run": "r", "resource": "H800", "source": "a paper", **cells}
    return ",".join(values.get(name, "") for name in csv.COLUMNS)


def import_csv(ledger: Ledger, folder: Path, *rows: str) -> Imported:
    file = folder / "account.csv"
    file.write_text("\n".join([HEADER, *rows]) + "\n")
    return take(ledger, csv.read(file), DAY)


def amounts(ledger: Ledger, *by: str) -> dict[tuple[str | int, ...], tuple[int, Decimal | None]]:
    return {found.values: (found.ns, found.amount) for found in ledger.report_by(by).rows}


def test_hours_apply_to_each_accelerator(ledger: Ledger, tmp_path: Path) -> None:
    done = import_csv(
        ledger, tmp_path, row(run="a", count="512", hours="198"), row(run="b", hours="101000.5")
    )
    assert (done.new, done.refused) == (2, ())
    assert amounts(ledger, "run") == {
        ("a",): (512 * 198 * HOUR_NS, Decimal("202752.000000")),
        ("b",): (1010005 * HOUR_NS // 10, Decimal("202001.000000")),
    }


def test_start_and_end_are_spread_over_their_days(ledger: Ledger, tmp_path: Path) -> None:
    import_csv(ledger, tmp_path, row(count="8", start="2026-10-31T22:00:00", end="2026-11-01T01:00:00+00:00"))
    assert amounts(ledger, "month") == {
        ("2026-10",): (16 * HOUR_NS, Decimal("32.000000")),
        ("2026-11",): (8 * HOUR_NS, Decimal("16.000000")),
    }


def test_hours_begin_at_the_start(ledger: Ledger, tmp_path: Path) -> None:
    import_csv(ledger, tmp_path, row(count="2", start="2026-10-31", hours="48"))
    assert amounts(ledger, "day") == {
        ("2026-10-31",): (48 * HOUR_NS, Decimal("96.000000")),
        ("2026-11-01",): (48 * HOUR_NS, Decimal("96.000000")),
    }


def test_usage_without_a_date_counts_on_the_day_of_the_import(ledger: Ledger, tmp_path: Path) -> None:
    import_csv(ledger, tmp_path, row(hours="1"))
    assert list(amounts(ledger, "day")) == [("2026-11-23",)]


def test_a_stated_price_has_precedence_over_the_price_book(ledger: Ledger, tmp_path: Path) -> None:
    import_csv(ledger, tmp_path, row(hours="10", resource="unheard-of", unit_price="1.25", currency="USD"))
    assert amounts(ledger, "sku") == {("unheard-of",): (10 * HOUR_NS, Decimal("12.500000"))}


def test_an_unpublished_figure_is_kept_as_unknown(ledger: Ledger, tmp_path: Path) -> None:
    done = import_csv(ledger, tmp_path, row(stage="research", source="excluded by the report"))
    [usage] = [event for event in ledger.events() if isinstance(event, UsageStated)]
    assert done.new == 1
    assert (usage.accelerator_ns, usage.source) == ("", "excluded by the report")
    assert amounts(ledger, "run") == {}


def test_stages_of_one_run_keep_their_labels(ledger: Ledger, tmp_path: Path) -> None:
    rows = [
        row(pipeline="v3", stage=stage, purpose=purpose, hours=hours)
        for stage, purpose, hours in (("pre", "final", "3"), ("post", "final", "2"), ("post", "failed", "1"))
    ]
    import_csv(ledger, tmp_path, *rows)
    assert {key: found[0] // HOUR_NS for key, found in amounts(ledger, "stage", "purpose").items()} == {
        ("pre", "final"): 3,
        ("post", "final"): 2,
        ("post", "failed"): 1,
    }
    assert len(ledger.runs_of("v3")) == 3


def test_an_existing_run_keeps_its_labels(ledger: Ledger, tmp_path: Path) -> None:
    import_csv(ledger, tmp_path, row(team="infra", hours="1"))
    import_csv(ledger, tmp_path, row(team="research", hours="2"))
    assert {key: found[0] // HOUR_NS for key, found in amounts(ledger, "team").items()} == {
        ("infra",): 1,
        ("research",): 2,
    }


def test_importing_again_only_adds_new_lines(ledger: Ledger, tmp_path: Path) -> None:
    rows = [row(run=f"r{number}", hours=str(number)) for number in range(1, 5)]
    rows += [row(run="r", stage=stage, hours="7") for stage in ("a", "b")]
    assert import_csv(ledger, tmp_path, *rows[:3]).new == 3
    before = amounts(ledger, "run")
    again = import_csv(ledger, tmp_path, *rows[:3])
    assert (again.new, again.known, again.refused) == (0, 3, ())
    assert amounts(ledger, "run") == before
    more = import_csv(ledger, tmp_path, *reversed(rows))
    assert (more.new, more.known) == (3, 3)
    assert ledger.report_by(["run"]).ns == (1 + 2 + 3 + 4 + 7 + 7) * HOUR_NS


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        (row(hours="-1"), "hours"),
        (row(hours="1,000".replace(",", ".0.")), "hours"),
        (row(hours="1e3"), "hours"),
        (row(start="2026-11-02", end="2026-11-01"), "end"),
        (row(start="2026-11-02"), "end"),
        (row(end="2026-11-02"), "start"),
        (row(start="yesterday", end="2026-11-02"), "start"),
        (row(start="2026-11-01", end="2026-11-02", hours="24"), "hours"),
        (row(count="0", hours="1"), "count"),
        (row(hours="1", purpose="fun"), "purpose"),
        (row(hours="1", resource=""), "resource"),
        (row(hours="1", run=""), "run"),
        (row(hours="1", resource="unheard-of"), "sku"),
        (row(hours="1", unit_price="2"), "unit_price"),
        (row(hours="1", unit_price="free", currency="USD"), "unit_price"),
        (row(hours="1", unit_price="2", currency="CHF"), "currency"),
        (row(hours="1", start="1492-10-12"), "start"),
        (row(hours="1") + ",", "line"),
        (row(hours="1", team="a\0b"), "team"),
    ],
)
def test_a_bad_row_is_rejected_with_its_line_without_affecting_others(
    ledger: Ledger, tmp_path: Path, bad: str, key: str
) -> None:
    done = import_csv(ledger, tmp_path, row(run="before", hours="1"), bad, row(run="after", hours="2"))
    [refused] = done.refused
    assert refused.key == f"{tmp_path / 'account.csv'}:3 {key}"
    assert done.new == 2
    assert list(amounts(ledger, "run")) == [("after",), ("before",)]


def test_two_equal_lines_count_as_duplicates(ledger: Ledger, tmp_path: Path) -> None:
    done = import_csv(ledger, tmp_path, row(hours="1"), row(hours="1"))
    assert done.new == 1
    assert [error.key for error in done.refused] == [f"{tmp_path / 'account.csv'}:3 line"]


@pytest.mark.parametrize(
    "content", [b"", b"run,hours\nr,1\n", HEADER.encode() + b",more\n", HEADER.encode() + b"\n\xff\xfe\n"]
)
def test_a_file_of_another_format_is_rejected(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "account.csv"
    file.write_bytes(content)
    with pytest.raises(LedgerError, match=r"account\.csv"):
        csv.read(file)


ALLOCATED = "cpu=64,gres/gpu:h100=8,gres/gpu=8"
SLURM_JOB = "JobID|State|Start|End|AllocTRES"
SLURM_ROW = "1|COMPLETED|2026-11-01T00:00:00|2026-11-01T01:00:00"
SACCT = [
    "JobID|JobName|Cluster|Account|WCKey|State|Start|End|AllocTRES|NodeList",
    f"101|pre|alps|nlp|*|COMPLETED|2026-11-01T00:00:00|2026-11-01T02:00:00|{ALLOCATED},node=2|n[01-02]",
    f"101.batch|b|alps|nlp||COMPLETED|2026-11-01T00:00:00|2026-11-01T02:00:00|{ALLOCATED}|n01",
    f"101.0|python|alps|nlp||COMPLETED|2026-11-01T00:00:00|2026-11-01T02:00:00|{ALLOCATED}|n[01-02]",
    "102_7|sweep|alps|nlp|r1|NODE_FAIL|2026-11-01T00:00:00|2026-11-01T01:00:00|cpu=8,gres/gpu=2|n03",
    "103|prep|alps|data||CANCELLED by 1001|2026-11-01T00:00:00|2026-11-01T00:30:00|cpu=4,mem=16G|n04",
    "104|next|alps|nlp||RUNNING|2026-11-01T00:00:00|Unknown|cpu=8,gres/gpu:h100=1|n05",
    "105|never|alps|nlp||CANCELLED|None|2026-11-01T00:00:00||None assigned",
    "106|broken|alps|nlp||COMPLETED|2026-11-02T00:00:00|2026-11-01T00:00:00|cpu=8|n06",
    "107|short|alps|nlp",
]


def test_slurm_jobs_hold_their_gpus_or_else_their_cpus(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "sacct.txt"
    file.write_text("\n".join(SACCT) + "\n")
    names = slurm.SlurmNames(Labels(organisation="lab", project="other"))
    done = take(ledger, slurm.read(file, names), DAY)
    assert amounts(ledger, "run", "team", "project", "purpose", "sku", "node") == {
        ("alps/101", "nlp", "other", "unstated", "h100", "n01"): (8 * HOUR_NS, Decimal("24.000000")),
        ("alps/101", "nlp", "other", "unstated", "h100", "n02"): (8 * HOUR_NS, Decimal("24.000000")),
        ("alps/102_7", "nlp", "r1", "failed", "gpu", "n03"): (2 * HOUR_NS, Decimal("2.000000")),
        ("alps/103", "data", "other", "unstated", "cpu-slot", "n04"): (2 * HOUR_NS, Decimal("0.080000")),
    }
    assert done.new == 3
    assert [error.key for error in done.refused] == [f"{file}:9 End", f"{file}:10 line"]
    assert [line.partition(" ")[0] for line in (*done.waiting, *done.passed_over)] == [
        f"{file}:7",
        f"{file}:8",
    ]


def test_a_slurm_job_counts_once_it_has_ended_and_each_time_it_was_requeued(
    ledger: Ledger, tmp_path: Path
) -> None:
    file = tmp_path / "sacct.txt"
    first = (
        "JobID|State|Start|End|AllocTRES\n1|NODE_FAIL|2026-11-01T00:00:00|2026-11-01T01:00:00|gres/gpu=1\n"
    )
    file.write_text(first + "1|RUNNING|2026-11-01T02:00:00|Unknown|gres/gpu=1\n")
    assert take(ledger, slurm.read(file, slurm.SlurmNames()), DAY).new == 1
    file.write_text(first + "1|COMPLETED|2026-11-01T02:00:00|2026-11-01T05:00:00|gres/gpu=1\n")
    done = take(ledger, slurm.read(file, slurm.SlurmNames()), DAY)
    assert (done.new, done.known, done.refused) == (1, 1, ())
    assert amounts(ledger, "purpose") == {
        ("unstated",): (3 * HOUR_NS, Decimal("3.000000")),
        ("failed",): (HOUR_NS, Decimal("1.000000")),
    }


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("n1", "n1"),
        ("n[01-03,07]", "n01 n02 n03 n07"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("n[8-10],login,gpu[2,4]a", "n8 n9 n10 login gpu2a gpu4a"),
        ("r[1-2]n[08-09].x", "r1n08.x r1n09.x r2n08.x r2n09.x"),
    ],
)
def test_a_slurm_list_of_nodes_is_expanded(text: str, nodes: str) -> None:
    assert hostlist.expand(text) == tuple(nodes.split())


@pytest.mark.parametrize(
    "text",
    [
        *("", "n[", "n]", "n[]", "n[1-]", "n[3-1]", "n[a]", "n[1 2]", "n1,", ",n1", "n1,,n2", "n[[1]]"),
        *("None assigned", "n[000x133]", "n1,n[1-2]", "n[1-99999999]", "n[1-999]m[1-999]"),
    ],
)
def test_a_malformed_slurm_node_list_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a host list|repeated host|range|more than"):
        hostlist.expand(text)


@pytest.mark.parametrize(
    ("held", "nodes", "places"),
    [
        ("gres/gpu=6", "n[01-03]", {"n01": 2, "n02": 2, "n03": 2}),
        ("gres/gpu=7", "n[01-03]", {"": 7}),
        ("gres/gpu:h100=2,gres/gpu=4", "n[1-2]", {"": 4}),
        ("gres/gpu:h100=2,gres/gpu=4", "n[1]", {"n1": 4}),
        ("gres/gpu=4", "n[1-", {"": 4}),
    ],
)
def test_a_slurm_job_is_split_over_its_nodes_if_known(
    held: str, nodes: str, places: dict[str, int], ledger: Ledger, tmp_path: Path
) -> None:
    file = tmp_path / "sacct.txt"
    file.write_text(f"{SLURM_JOB}|NodeList\n{SLURM_ROW}|{held}|{nodes}\n")
    take(ledger, slurm.read(file, slurm.SlurmNames()), DAY)
    assert {node[0]: ns for node, (ns, _) in amounts(ledger, "node").items()} == {
        node: number * HOUR_NS for node, number in places.items()
    }


@pytest.mark.parametrize("first", ["whole", "nodes"])
def test_a_slurm_job_counts_once_whether_or_not_its_nodes_are_known(
    first: str, ledger: Ledger, tmp_path: Path
) -> None:
    whole, nodes = tmp_path / "whole.txt", tmp_path / "nodes.txt"
    whole.write_text(f"{SLURM_JOB}\n{SLURM_ROW}|gres/gpu=4\n")
    nodes.write_text(f"{SLURM_JOB}|NodeList\n{SLURM_ROW}|gres/gpu=4|n[1-2]\n")
    order = (whole, nodes) if first == "whole" else (nodes, whole)
    done = [take(ledger, slurm.read(file, slurm.SlurmNames()), DAY) for file in (*order, order[0])]
    assert [one.new for one in done] == [1, 0, 0]
    assert [len(one.refused) for one in done] == [0, 0 if first == "whole" else 1, 0]
    assert sum(ns for ns, _ in amounts(ledger, "node").values()) == 4 * HOUR_NS


def test_slurm_types_map_to_skus_and_times_have_a_time_zone(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "sacct.txt"
    job = "1|COMPLETED|2026-11-01T00:00:00|2026-11-01T01:00:00|gres/gpu:hopper=2,gres/gpu=3"
    file.write_text(f"JobID|State|Start|End|AllocTRES\n{job}\n")
    names = slurm.SlurmNames(skus={"hopper": "h100"}, zone=ZoneInfo("Europe/Zurich"))
    take(ledger, slurm.read(file, names), DAY)
    assert amounts(ledger, "day", "sku") == {
        ("2026-10-31", "gpu"): (HOUR_NS, Decimal("1.000000")),
        ("2026-10-31", "h100"): (2 * HOUR_NS, Decimal("6.000000")),
    }


def mlflow_run(run_id: str, hours: int, *gpus: str, status: str = "FINISHED", **tags: str) -> dict[str, Any]:
    start = ns("2026-11-01") // 10**6
    return {
        "info": {
            "run_id": run_id,
            "run_name": f"name of {run_id}",
            "experiment_id": "7",
            "status": status,
            "start_time": start,
            "end_time": start + hours * 3_600_000 if status != "RUNNING" else None,
        },
        "data": {
            "metrics": [{"key": "loss"}, *({"key": f"system/{gpu}_utilization_percentage"} for gpu in gpus)],
            "tags": [{"key": key.replace("__", "."), "value": value} for key, value in tags.items()],
        },
    }


RUNS = [
    mlflow_run("one", 3, "gpu_0", "gpu_1"),
    mlflow_run("nodes", 1, "n0/gpu_0", "n0/gpu_1", "n1/gpu_0", status="FAILED"),
    mlflow_run("parent", 9, "gpu_0"),
    mlflow_run("child", 2, "gpu_0", mlflow__parentRunId="parent"),
    mlflow_run("ours", 5, "gpu_0", orchestrator__run_id="r1"),
    mlflow_run("cpu", 4),
    mlflow_run("going", 0, "gpu_0", status="RUNNING"),
]
NAMES = mlflow.MlflowNames(UNLABELLED, "h100")


def hours_by_run(ledger: Ledger) -> dict[str | int, int]:
    return {key[0]: found[0] // HOUR_NS for key, found in amounts(ledger, "run", "purpose").items()}


def test_mlflow_runs_hold_the_gpus_of_their_system_metrics(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    file.write_text(json.dumps({"runs": RUNS}))
    lines = mlflow.read(str(file), NAMES)
    done = take(ledger, lines, DAY)
    assert hours_by_run(ledger) == {"mlflow/one": 6, "mlflow/nodes": 3, "mlflow/child": 2}
    assert ("mlflow/nodes", "failed") in amounts(ledger, "run", "purpose")
    assert [line.split("run ")[1].split(":")[0] for line in done.passed_over] == ["parent", "ours", "cpu"]
    assert len(done.waiting) == 1
    assert take(ledger, mlflow.read(str(file), NAMES), DAY).known == 3


def test_mlflow_runs_without_gpu_metrics_hold_the_given_count(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    file.write_text(json.dumps({"runs": [mlflow_run("cpu", 4)]}))
    take(ledger, mlflow.read(str(file), replace(NAMES, sku="cpu-slot", count=2)), DAY)
    assert hours_by_run(ledger) == {"mlflow/cpu": 8}


def test_an_mlflow_run_that_continued_is_rejected_rather_than_counted_twice(
    ledger: Ledger, tmp_path: Path
) -> None:
    file = tmp_path / "runs.json"
    for hours, new in ((1, 1), (2, 0)):
        file.write_text(json.dumps({"runs": [mlflow_run("one", hours, "gpu_0")]}))
        done = take(ledger, mlflow.read(str(file), NAMES), DAY)
        assert done.new == new
    assert [error.key for error in done.refused] == [f"{file} run one hours"]
    assert hours_by_run(ledger) == {"mlflow/one": 1}


def test_the_mlflow_database_gives_the_same_runs_as_the_server(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mlflow.db'}"
    engine = create_engine(url)
    with engine.begin() as connection:
        for table in (
            "experiments (experiment_id INTEGER, name TEXT)",
            "runs (run_uuid TEXT, name TEXT, experiment_id INTEGER, status TEXT, start_time BIGINT,"
            " end_time BIGINT, lifecycle_stage TEXT)",
            "latest_metrics (run_uuid TEXT, key TEXT)",
            "tags (run_uuid TEXT, key TEXT, value TEXT)",
        ):
            connection.execute(text(f"CREATE TABLE {table}"))
        connection.execute(text("INSERT INTO experiments VALUES (7, '7')"))
        for run in RUNS:
            info = run["info"]
            connection.execute(
                text(
                    "INSERT INTO runs VALUES"
                    " (:run_id, :run_name, 7, :status, :start_time, :end_time, 'active')"
                ),
                info,
            )
            for metric in run["data"]["metrics"]:
                connection.execute(
                    text("INSERT INTO latest_metrics VALUES (:run, :key)"),
                    {"run": info["run_id"], "key": metric["key"]},
                )
            for tag in run["data"]["tags"]:
                connection.execute(
                    text("INSERT INTO tags VALUES (:run, :key, :value)"), {"run": info["run_id"], **tag}
                )
    engine.dispose()
    file = tmp_path / "runs.json"
    file.write_text(json.dumps({"runs": RUNS}))

    def without_places(lines: Lines) -> list[Any]:
        return sorted(replace(statement, where="").event_id for statement in lines.statements)

    assert without_places(mlflow.read(url, NAMES)) == without_places(mlflow.read(str(file), NAMES))


@pytest.mark.parametrize("source", ["nowhere.json", "sqlite:///nowhere.db", "http://127.0.0.1:9/"])
def test_a_missing_mlflow_source_is_reported(tmp_path: Path, source: str) -> None:
    with pytest.raises(LedgerError) as refusal:
        mlflow.read(source.replace("nowhere", str(tmp_path / "nowhere")), NAMES)
    assert "nowhere" in str(refusal.value) or "127.0.0.1" in str(refusal.value)
