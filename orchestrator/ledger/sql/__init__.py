"""The ledger's tables in SQLite (embedded) or PostgreSQL (shared), through SQLAlchemy Core."""
