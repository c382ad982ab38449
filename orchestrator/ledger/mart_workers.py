"""Books the parts of a large mart in worker processes: `python -m orchestrator.ledger.mart_workers`.

A worker reads the pickled URL and jobs from its standard input, because the URL may contain a password and
command lines are public. It books the jobs one after the other and writes the pickled result to its standard
output. This is not a process pool, because a pool would import the caller's main module again.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence

from orchestrator.ledger.errors import LedgerStateError
from orchestrator.ledger.mart_parts import LeaseRow, PartJob, book_part

MAX_WORKERS = 8


def book_parts(url: str, jobs: Sequence[PartJob]) -> list[list[LeaseRow]]:
    """The leases of each job, as `book_part` returns them. Raises LedgerStateError if a worker fails."""
    count = min(len(jobs), os.cpu_count() or 1, MAX_WORKERS)
    command = [sys.executable, "-m", "orchestrator.ledger.mart_workers"]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
    results: list[list[LeaseRow]] = [[] for _ in jobs]
    for first, worker in enumerate(workers):
        assert worker.stdin is not None
        worker.stdin.write(pickle.dumps((url, jobs[first::count])))
        worker.stdin.close()
    for first, worker in enumerate(workers):
        assert worker.stdout is not None
        output = worker.stdout.read()
        worker.stdout.close()
        if worker.wait() != 0:
            raise LedgerStateError(
                f"A worker that books the mart ended with exit code {worker.returncode}.",
                "Its output is above.",
            )
        results[first::count] = pickle.loads(output)
    return results


def _work() -> None:
    from orchestrator.ledger.sql.engine import open_engine
    from orchestrator.ledger.sql.journal import SqlJournal

    read: tuple[str, list[PartJob]] = pickle.loads(sys.stdin.buffer.read())
    url, jobs = read
    journal = SqlJournal(open_engine(url), time.time_ns)
    sys.stdout.buffer.write(pickle.dumps([book_part(job, journal) for job in jobs]))


if __name__ == "__main__":
    _work()
