"""Imports runs that other tools logged to MLflow with system metrics, which say which GPUs a
process saw and when.

MLflow itself is not needed. The source is a tracking server with its REST API (`http://host:port`), a
tracking database (`sqlite:///mlflow.db`, `postgresql://...`), or a file with the JSON of `runs/search`.

A run held the GPUs named in its system metrics (`system/gpu_0_...`, or `system/NODE/gpu_0_...` for several
nodes) from its start to its end. These do not count: runs of this project (tag `orchestrator.run_id`), which
spool their own events; parents whose children count, since they share GPUs; unfinished runs; and runs
without GPU metrics, unless `count` says how many GPUs each held.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.imports.statements import Lines, Statement, identity
from orchestrator.ledger.labels import Labels

OWN_TAG = "orchestrator.run_id"
PARENT_TAG = "mlflow.parentRunId"

_GPU = re.compile(r"system/(?:(.+)/)?gpu_(\d+)_\w+", re.ASCII)
_PAGE = 1000
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class MlflowNames:
    """`labels` of every run (without a project, the name of the experiment is used), `sku` of the GPUs, and
    the number of GPUs of runs without system metrics (0: such runs do not count).
    """

    labels: Labels
    sku: str
    count: int = 0


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run as MLflow describes it. Times in milliseconds; an end of 0 means unfinished."""

    run_id: str
    name: str
    experiment: str
    status: str
    start_ms: int
    end_ms: int
    metrics: frozenset[str]
    tags: Mapping[str, str]


def read(source: str, names: MlflowNames) -> Lines:
    """Read the runs at `source`. Raises LedgerError."""
    if source.startswith(("http://", "https://")):
        runs = list(_from_server(source.rstrip("/")))
    elif "://" in source:
        runs = list(_from_database(source))
    else:
        runs = list(_from_file(Path(source)))
    lines = Lines()
    counted_parents = {run.tags.get(PARENT_TAG, "") for run in runs if gpus(run.metrics) or names.count}
    for run in runs:
        where = f"{source} run {run.run_id}"
        reason = _why_not(run, counted_parents, names)
        if reason:
            lines.passed_over.append(f"{where}: {reason}")
        elif not run.end_ms:
            lines.waiting.append(f"{where}: {run.status}")
        elif run.end_ms < run.start_ms:
            allowed = f"{run.start_ms} or later"
            lines.refused.append(
                LedgerError(f"{where} end_time", str(run.end_ms), allowed, "a negative duration")
            )
        else:
            lines.statements.append(_statement(where, run, names))
    return lines


def gpus(metrics: Iterable[str]) -> int:
    """The number of GPUs named in the system metrics of a run; GPUs of different nodes are different.

    >>> gpus(["system/gpu_0_utilization_percentage", "system/gpu_1_utilization_percentage", "loss"])
    2
    """
    return len({found.groups() for name in metrics if (found := _GPU.fullmatch(name))})


def _why_not(run: FoundRun, counted_parents: Collection[str], names: MlflowNames) -> str:
    """Why a run does not count; empty if it does."""
    if OWN_TAG in run.tags:
        return "a run of this project, which spools its own usage"
    if not gpus(run.metrics) and not names.count:
        return "no GPU in its system metrics (--count N sets how many such runs held)"
    if run.run_id in counted_parents:
        return "its child runs are counted"
    return ""


def _statement(where: str, run: FoundRun, names: MlflowNames) -> Statement:
    start, end = run.start_ms * 1_000_000, run.end_ms * 1_000_000
    given = names.labels
    return Statement(
        where=where,
        event_id=identity("mlflow", run.run_id),
        run=f"mlflow/{run.run_id}",
        labels=given._replace(
            project=given.project or run.experiment,
            job=run.name,
            purpose="failed" if run.status == "FAILED" else given.purpose,
        ),
        sku=names.sku,
        accelerator_ns=(gpus(run.metrics) or names.count) * (end - start),
        start_ns=start,
        end_ns=end,
        source=f"MLflow run {run.run_id}",
    )


def _from_file(path: Path) -> Iterator[FoundRun]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LedgerError(str(path), str(error), "JSON of MLflow's runs/search") from error
    yield from _parse_runs(str(path), document, {})


def _from_server(url: str) -> Iterator[FoundRun]:
    experiments = {
        str(found.get("experiment_id")): str(found.get("name"))
        for page in _pages(url, "experiments", {})
        for found in page.get("experiments", [])
    }
    if experiments:
        for page in _pages(url, "runs", {"experiment_ids": sorted(experiments)}):
            yield from _parse_runs(url, page, experiments)


def _pages(url: str, what: str, query: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    token = ""
    while True:
        body = {**query, "max_results": _PAGE, **({"page_token": token} if token else {})}
        page = _post(f"{url}/api/2.0/mlflow/{what}/search", body)
        yield page
        token = page.get("next_page_token", "")
        if not token:
            return


def _post(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            return json.loads(answer.read())
    except (urllib.error.URLError, ValueError, OSError) as error:
        raise LedgerError("SOURCE", url, "a reachable MLflow tracking server", str(error)) from error


def _parse_runs(source: str, page: Any, experiments: Mapping[str, str]) -> Iterator[FoundRun]:  # noqa: ANN401
    try:
        for run in page.get("runs", []):
            info, data = run["info"], run.get("data", {})
            tags = {tag["key"]: tag["value"] for tag in data.get("tags", [])}
            experiment = str(info.get("experiment_id", ""))
            yield FoundRun(
                run_id=info["run_id"],
                name=info.get("run_name") or tags.get("mlflow.runName", ""),
                experiment=experiments.get(experiment, experiment),
                status=info["status"],
                start_ms=int(info["start_time"]),
                end_ms=int(info.get("end_time") or 0),
                metrics=frozenset(metric["key"] for metric in data.get("metrics", [])),
                tags=tags,
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        hint = f"{type(error).__name__}: {error}"
        raise LedgerError(source, "something else", "JSON of MLflow's runs/search", hint) from error


def _from_database(url: str) -> Iterator[FoundRun]:
    """Reads MLflow's own tables: runs, experiments, latest_metrics, tags."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    database = url.replace("postgresql://", "postgresql+psycopg://")
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise LedgerError("SOURCE", url, "an existing tracking database")
    try:
        engine = create_engine(database)
        with engine.connect() as connection:
            metrics: dict[str, set[str]] = {}
            names = "SELECT run_uuid, key FROM latest_metrics WHERE key LIKE 'system/%'"
            for run_id, key in connection.execute(text(names)):
                metrics.setdefault(run_id, set()).add(key)
            tags: dict[str, dict[str, str]] = {}
            for run_id, key, value in connection.execute(text("SELECT run_uuid, key, value FROM tags")):
                tags.setdefault(run_id, {})[key] = value
            query = (
                "SELECT run_uuid, runs.name, experiments.name, status, start_time, end_time FROM runs"
                " JOIN experiments ON experiments.experiment_id = runs.experiment_id"
                " WHERE runs.lifecycle_stage = 'active' ORDER BY start_time, run_uuid"
            )
            rows = connection.execute(text(query)).all()
        engine.dispose()
    except SQLAlchemyError as error:
        hint = str(getattr(error, "orig", error))
        raise LedgerError("SOURCE", url, "an MLflow database", hint) from error
    for run_id, name, experiment, status, start, end in rows:
        found = frozenset(metrics.get(run_id, ()))
        yield FoundRun(
            run_id, name or "", experiment, status, start or 0, end or 0, found, tags.get(run_id, {})
        )
