"""How the learner ranks of one host find each other to write weights together."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """The address at which the learner ranks of one host find each other."""

    name: str
    """Unique on the host. Any local user can list it."""
    ranks: int
    timeout_seconds: float
    """How long a rank waits for another one."""
    secret: bytes = field(repr=False)
    """Known to the actors of this attempt only; not empty."""
