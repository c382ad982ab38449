"""Jobs of a Slurm cluster: what `sacct --parsable2` prints, with its header.

    sacct --parsable2 --allusers --starttime 2026-11-01 \\
          --format JobID,JobName,Cluster,Account,User,WCKey,State,Start,End,AllocTRES,NodeList

JobID, State, Start, End and AllocTRES are needed, the others are used where they are there. One line a job
counts: its steps (`123.batch`) are parts of it. A job holds the GPUs of its allocated TRES, by type where
Slurm tells types apart; a job without GPUs holds its CPUs. A job that has not ended is left for the next
import; one that never started used nothing. A job on several nodes held as many accelerators on each, as far
as its line tells: where they can't be shared evenly, or are of several types, its usage names no node.
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
    """How Slurm's words become the ledger's. A job's team is its account, its project its WCKey.

    `labels` fills what the jobs do not say. `skus` names the price book's SKU of a GPU type (`h100`), of GPUs
    without a type (`gpu`) and of CPUs (`cpu`). `zone` is the time zone that sacct wrote times in.
    """

    labels: Labels = UNLABELLED
    skus: Mapping[str, str] = field(default_factory=dict[str, str])
    zone: tzinfo = UTC


def read(path: Path, names: SlurmNames) -> Lines:
    """The jobs of a file. Raises LedgerError for a file that is no output of sacct."""
    try:
        text = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(str(path), str(error), "the output of sacct --parsable2") from error
    header = text[0].split("|") if text else []
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        got = f"without {', '.join(missing)}"
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
        raise LedgerError("line", f"{len(cells)} cells", f"{len(header)} cells", "a name with | in it?")
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
        # A job that was requeued has one line for each start.
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
    """The nodes that share evenly what a job held; none if the line does not tell."""
    try:
        nodes = expand(text)
    except ValueError:
        return ()
    even = len(held) == 1 and all(number % len(nodes) == 0 for number in held.values())
    return nodes if len(nodes) == 1 or even else ()


def _held(tres: str) -> dict[str, int]:
    """What a job held, by GPU type (`gpu` where Slurm tells none), or its CPUs if it had no GPU."""
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
    rest = max(0, untyped - sum(typed.values()))  # gres/gpu counts all of them, types or not
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
