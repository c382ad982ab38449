"""Alembic migrations of the ledger's tables.

`upgrade` brings a store to the newest version, `downgrade` back to an older one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, inspect, text

from orchestrator.ledger.errors import LedgerReadOnlyError, LedgerStateError
from orchestrator.ledger.sql.engine import reading, writing

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0003"
"""The schema version that this code reads and writes."""


def version_of(engine: Engine) -> str | None:
    """The schema version of a store; None if it has no tables yet. Raises LedgerUnavailableError."""
    with reading(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.scalar(text("SELECT version_num FROM alembic_version"))


def upgrade(engine: Engine, revision: str = HEAD) -> None:
    """Create or extend the tables in one transaction.

    Raises LedgerStateError if the store is newer than this code, or older and cannot be written.
    """
    from alembic import command

    found = version_of(engine)
    if found is not None and found > HEAD:
        raise LedgerStateError(
            f"The ledger has schema version {found}, which is newer than {HEAD}.", "Upgrade this program."
        )
    try:
        with writing(engine) as connection:
            configuration = _configuration()
            configuration.attributes["connection"] = connection
            command.upgrade(configuration, revision)
    except LedgerReadOnlyError as error:
        if found is None:
            raise
        raise LedgerStateError(
            f"The ledger has schema version {found}, this program reads {HEAD}, and it cannot be upgraded"
            " because it cannot be written.",
            "Open it once where it can be written, for example a copy of the file.",
        ) from error


def downgrade(engine: Engine, revision: str) -> None:
    """Revert migrations to `revision`, or all of them (`base`). The content of dropped tables is lost."""
    from alembic import command

    with writing(engine) as connection:
        configuration = _configuration()
        configuration.attributes["connection"] = connection
        command.downgrade(configuration, revision)


def require_head(engine: Engine) -> None:
    """Upgrade a store to HEAD unless it is there. Does not import Alembic unnecessarily."""
    if version_of(engine) != HEAD:
        upgrade(engine)


def _configuration() -> Config:
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return configuration
