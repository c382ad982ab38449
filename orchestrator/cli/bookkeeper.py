"""Ships a run's usage events to the ledger while the run goes on, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.ledger.ledger import Ledger

logger = logging.getLogger(__name__)


class Bookkeeper:
    """Every `every_seconds` takes what is new in the spool and asks what the run cost so far.

    A ledger that can't be reached does not stop the run: the events stay in the spool, the cost stays what it
    was, and the next round tries again. `close` ships the rest.
    """

    def __init__(
        self, open_ledger: Callable[[], Ledger], spool: Path, run_id: str, every_seconds: float
    ) -> None:
        self._open_ledger, self._spool, self._run_id = open_ledger, spool, run_id
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        self._cost: Decimal | None = None
        self._shipped = False
        self._thread = threading.Thread(target=self._work, name="bookkeeper", daemon=True)
        self._thread.start()

    @property
    def cost(self) -> Decimal | None:
        """What the run cost at the last round, in the price book's currency; None before the first."""
        return self._cost

    def close(self) -> bool:
        """Ship the rest and stop; whether everything is in the ledger."""
        self._ended.set()
        self._thread.join()
        return self._shipped

    def _work(self) -> None:
        ledger: Ledger | None = None
        warned = False
        while True:
            ending = self._ended.wait(self._every_seconds)
            try:
                ledger = ledger or self._open_ledger()
                ledger.ship(self._spool)
                self._cost = ledger.cost_so_far(self._run_id)
                self._shipped, warned = True, False
            except Exception as error:  # noqa: BLE001 - no error of a database may end the run or this thread
                self._shipped = False
                if not warned:
                    logger.warning("the ledger can't be reached, events stay in %s: %s", self._spool, error)
                warned = True
            if ending:
                return
