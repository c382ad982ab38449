"""The ledger's tables in SQLite (embedded) or PostgreSQL (shared), with SQLAlchemy Core."""
