"""Connections to SQLite and PostgreSQL, with one writer at a time.

Appends are serialised (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock held to the end of the
transaction). So `seq` has no gaps, `recorded_ns` never decreases, and a reader that has seen event `seq` has
seen every event before it.

A SQLite file in WAL mode needs room for a second file even to be read. `open_engine(url, read_only=True)`
reads it without writing anything, for example from a read-only mount or a full disk.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from orchestrator.ledger.errors import LedgerError, LedgerReadOnlyError, LedgerUnavailableError

BUSY_TIMEOUT_MS = 60_000

CHUNK = 500
"""Values per IN list, well below the limits of both databases."""

FETCH = 10_000
"""Rows per fetch."""

_LOCK_KEY = 0x6C6564676572  # "ledger"
_WRITE = "ledger_write"
_ALLOWED = "a database that can be reached and written"
_ALLOWED_URLS = "sqlite:///path or postgresql://user@host/database"

_SQLITE_READ_ONLY = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
)
_POSTGRES_READ_ONLY = frozenset({"53100", "25006"})  # disk_full, read_only_sql_transaction


def open_engine(url: str, read_only: bool = False) -> Engine:
    """An engine for `sqlite:///path` or `postgresql://...`.

    Creates the directory of a SQLite file, unless `read_only`. Raises LedgerError for any other URL,
    LedgerReadOnlyError if the directory cannot be created.
    """
    parsed = _parse_url(url)
    backend = parsed.get_backend_name()
    file = Path(parsed.database or ":memory:") if backend == "sqlite" else None
    if file is not None and file.name != ":memory:" and not read_only:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerReadOnlyError(
                f"Cannot create {file.parent}: {error}", key="ledger.url", value=url, allowed=_ALLOWED
            ) from error
    try:
        if file is not None and read_only:
            engine = create_engine(parsed, creator=lambda: _connect_read_only(file))
        else:
            engine = create_engine(parsed)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise LedgerError(
            "ledger.url", backend, "a database whose driver is installed", "pip install psycopg[binary]"
        ) from error
    if file is not None:
        event.listen(engine, "connect", _configure_sqlite_reader if read_only else _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        raise LedgerError("ledger.url", _without_password(url), _ALLOWED_URLS) from None
    if "@" in (parsed.host or ""):
        hint = "write an @ in the password as %40"
        raise LedgerError("ledger.url", _without_password(url), _ALLOWED_URLS, hint)
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise LedgerError("ledger.url", parsed.render_as_string(hide_password=True), _ALLOWED_URLS)
    return parsed


def _without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]*):\S*@", r"\1:***@", url)


def _connect_read_only(file: Path) -> sqlite3.Connection:
    """Open a SQLite file without writing beside it.

    Without a write-ahead log no process has the file open for writing, so it may be read as immutable. With
    one, SQLite also needs the `-shm` file that the writer left beside it.
    """
    log = file.with_name(f"{file.name}-wal")
    mode = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
    return sqlite3.connect(f"file:{quote(str(file))}?{mode}", uri=True, check_same_thread=False)


def _configure_sqlite_reader(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins transactions, not the driver
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA cache_size = -65536")  # 64 MiB, to keep the index over event ids in memory
    cursor.execute("PRAGMA wal_autocheckpoint = 16384")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL mode, and retry while the file is busy.

    SQLite ignores the busy timeout here, so one of two processes that open a new file at once would fail.
    """
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
    """Translate errors of the database driver into errors of the ledger."""
    try:
        yield
    except DBAPIError as error:
        where = engine.url.render_as_string(hide_password=True)
        if _is_read_only(error.orig):
            raise LedgerReadOnlyError(
                f"Cannot write the ledger at {where}: {error.orig}",
                key="ledger.url",
                value=where,
                allowed=_ALLOWED,
            ) from error
        raise LedgerUnavailableError(
            f"Cannot use the ledger at {where}: {error.orig}", key="ledger.url", value=where, allowed=_ALLOWED
        ) from error


def _is_read_only(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_READ_ONLY
    return getattr(error, "sqlstate", None) in _POSTGRES_READ_ONLY


@contextmanager
def writing(engine: Engine) -> Generator[Connection]:
    """A transaction that excludes all other writers; committed at the end, rolled back on an error."""
    with _translating(engine), engine.connect() as connection:
        connection = connection.execution_options(**{_WRITE: True})
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            yield connection


@contextmanager
def reading(engine: Engine) -> Generator[Connection]:
    """A transaction that sees a single snapshot of the store."""
    with _translating(engine), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection
