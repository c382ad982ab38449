"""Imports jobs of a Slurm cluster from the output of `sacct --parsable2` with its header.

    sacct --parsable2 --allusers --starttime 2026-11-01 \\
          --format JobID,JobName,Cluster,Account,User,WCKey,State,Start,End,AllocTRES,NodeList

JobID, State, Start, End and AllocTRES are required, the other columns are optional. One line per job counts;
its steps (`123.batch`) are part of it. A job holds the GPUs of its allocated TRES, by type if Slurm
distinguishes types; a job without GPUs holds its CPUs. A job that has not ended is left to a later import,
and one that never started used nothing. A job on several nodes is assumed to hold the same number of
accelerators on each. If they cannot be shared evenly, or have several types, its usage has no node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.imports.hostlist import expand
from orchestrator.ledger.imports.statements import Lines, Statement, identity
from orchestrator.ledger.labels import UNLABELLED, Labels

REQUIRED = ("JobID", "State", "Start", "End", "AllocTRES")
FAILED = ("BOOT_FAIL", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY")

_GPU = re.compile(r"gres/gpu(?::([^=]+))?=(\d+)", re.ASCII)
_CPU = re.compile(r"cpu=(\d+)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_TIME = ("", "None", "Unknown")


@dataclass(frozen=True, slots=True)
class SlurmNames:
    """Maps Slurm's terms to the ledger's. The team of a job is its account, its project is its WCKey.

    `labels` are defaults for jobs without a value. `skus` maps a GPU type (`h100`), GPUs without a type
    (`gpu`) and CPUs (`cpu`) to SKUs of the price book. `zone` is the time zone of the times in the file.
    """

    labels: Labels = UNLABELLED
    skus: Mapping[str, str] = field(default_factory=dict[str, str])
    zone: tzinfo = UTC


def read(path: Path, names: SlurmNames) -> Lines:
    """Read the jobs of a file. Raises LedgerError if it is not output of sacct."""
    try:
        text = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(str(path), str(error), "the output of sacct --parsable2") from error
    header = text[0].split("|") if text else []
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        got = f"no column {', '.join(missing)}"
        raise LedgerError(f"{path}:1", got, "|".join(REQUIRED), "sacct --parsable2, with its header")
    lines = Lines()
    for number, line in enumerate(text[1:], 2):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            _read_job(where, header, line.split("|"), names, lines)
        except LedgerError as error:
            lines.refused.append(LedgerError(f"{where} {error.key}", error.value, error.allowed, error.hint))
    return lines


def _read_job(where: str, header: list[str], cells: list[str], names: SlurmNames, lines: Lines) -> None:
    if len(cells) != len(header):
        raise LedgerError("line", f"{len(cells)} cells", f"{len(header)} cells", "does a name contain |?")
    job = dict(zip(header, cells, strict=True))
    if "." in job["JobID"]:
        return
    if job["Start"] in _NO_TIME:
        lines.passed_over.append(f"{where} job {job['JobID']}: never started ({job['State']})")
        return
    if job["End"] in _NO_TIME:
        lines.waiting.append(f"{where} job {job['JobID']}: {job['State']}")
        return
    start, end = _instant(job, "Start", names.zone), _instant(job, "End", names.zone)
    if end < start:
        raise LedgerError("End", job["End"], f"{job['Start']} or later", "a negative duration")
    held = _held(job["AllocTRES"])
    nodes = _nodes(job.get("NodeList", ""), held)
    for kind, number in held.items():
        lines.statements.append(_statement(where, job, kind, number, start, end, names, nodes))


def _statement(
    where: str,
    job: Mapping[str, str],
    kind: str,
    held: int,
    start: int,
    end: int,
    names: SlurmNames,
    nodes: tuple[str, ...],
) -> Statement:
    cluster = job.get("Cluster") or "slurm"
    state = job["State"].split(" ")[0]
    given = names.labels
    return Statement(
        where=where,
        # A requeued job has one line per start.
        event_id=identity("slurm", cluster, job["JobID"], job["Start"], kind),
        run=f"{cluster}/{job['JobID']}",
        labels=given._replace(
            team=job.get("Account") or given.team,
            project=job.get("WCKey", "").lstrip("*") or given.project,
            job=job.get("JobName", ""),
            purpose="failed" if state in FAILED else given.purpose,
        ),
        sku=names.skus.get(kind, "cpu-slot" if kind == "cpu" else kind),
        accelerator_ns=held * (end - start),
        start_ns=start,
        end_ns=end,
        source=f"sacct, {cluster}, job {job['JobID']}",
        nodes=nodes,
    )


def _nodes(text: str, held: Mapping[str, int]) -> tuple[str, ...]:
    """The nodes that share the resources of a job evenly; none if the line does not tell."""
    try:
        nodes = expand(text)
    except ValueError:
        return ()
    even = len(held) == 1 and all(number % len(nodes) == 0 for number in held.values())
    return nodes if len(nodes) == 1 or even else ()


def _held(tres: str) -> dict[str, int]:
    """What a job held, by GPU type (`gpu` if Slurm has no types), or its CPUs if it had no GPU."""
    typed: dict[str, int] = {}
    untyped = cpus = 0
    for part in tres.split(","):
        if found := _GPU.fullmatch(part):
            if found[1]:
                typed[found[1]] = typed.get(found[1], 0) + int(found[2])
            else:
                untyped = int(found[2])
        elif found := _CPU.fullmatch(part):
            cpus = int(found[1])
    rest = max(0, untyped - sum(typed.values()))  # gres/gpu counts all GPUs, with or without a type
    held = {**typed, "gpu": rest}
    held = {kind: number for kind, number in held.items() if number}
    if held:
        return held
    if not cpus:
        raise LedgerError("AllocTRES", tres or "nothing", "cpu=N, gres/gpu=N or gres/gpu:TYPE=N")
    return {"cpu": cpus}


def _instant(job: Mapping[str, str], name: str, zone: tzinfo) -> int:
    try:
        at = datetime.fromisoformat(job[name])
    except ValueError as error:
        raise LedgerError(name, job[name], "YYYY-MM-DDTHH:MM:SS, Unknown or None") from error
    since = (at if at.tzinfo else at.replace(tzinfo=zone)) - _EPOCH
    return (since // timedelta(microseconds=1)) * 1000
