"""Connections: one way to open SQLite and PostgreSQL, with one writer at a time.

Appends are serialised (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock held to the end of the
transaction), so that `seq` has no holes, `recorded_ns` never goes back, and whoever reads `seq` up to n has
seen everything up to n.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from orchestrator.ledger.errors import LedgerError, LedgerUnavailableError

BUSY_TIMEOUT_MS = 60_000

CHUNK = 500
"""Values in one IN list: well under the limits of both databases."""

FETCH = 10_000
"""Rows fetched at once."""

_LOCK_KEY = 0x6C6564676572  # "ledger"
_WRITE = "ledger_write"


def open_engine(url: str) -> Engine:
    """An engine for `sqlite:///path` or `postgresql://...`. Makes the folder of a SQLite file.

    Raises LedgerError for another URL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter: a port that is no number
        shown = re.sub(r":[^:@/]*@", ":***@", url)
        raise LedgerError("ledger.url", shown, "sqlite:///path or postgresql://user@host/database") from None
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif backend != "sqlite":
        shown = parsed.render_as_string(hide_password=True)
        raise LedgerError("ledger.url", shown, "sqlite:///path or postgresql://user@host/database")
    elif parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = create_engine(parsed)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise LedgerError(
            "ledger.url", backend, "a database whose driver is installed", "pip install psycopg[binary]"
        ) from error
    if backend == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin_sqlite`, not guessed by the driver
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA cache_size = -65536")  # 64 MiB: the index over event ids stays in memory longer
    cursor.execute("PRAGMA wal_autocheckpoint = 16384")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """SQLite does not wait here for the busy timeout: of two that open a new file at once one would fail."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _translating(engine: Engine) -> Generator[None]:
    """Turn what the driver raises into an error of the ledger's own: callers need not know the driver."""
    try:
        yield
    except DBAPIError as error:
        where = engine.url.render_as_string(hide_password=True)
        raise LedgerUnavailableError(
            "ledger.url", where, "a database that answers", str(error.orig)
        ) from error


@contextmanager
def writing(engine: Engine) -> Generator[Connection]:
    """A transaction that no other writer runs beside; committed at the end, rolled back on an error."""
    with _translating(engine), engine.connect() as connection:
        connection = connection.execution_options(**{_WRITE: True})
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            yield connection


@contextmanager
def reading(engine: Engine) -> Generator[Connection]:
    """A transaction that sees one state of the store."""
    with _translating(engine), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection
