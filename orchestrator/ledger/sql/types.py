"""Column types that both databases store exactly."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Dialect, Numeric, Text
from sqlalchemy.types import TypeDecorator, TypeEngine


class BigInt(TypeDecorator[int]):
    """Integers of up to 38 digits: NUMERIC(38, 0) in PostgreSQL, text in SQLite, whose
    integers have 64 bits.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Numeric(38, 0))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: int | None, dialect: Dialect) -> object:
        return value if value is None or dialect.name == "postgresql" else str(value)

    def process_result_value(self, value: object, dialect: Dialect) -> int | None:
        return None if value is None else int(str(value))
