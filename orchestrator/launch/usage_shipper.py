"""Ships the usage events of a run to the ledger while it runs, and keeps the run within its budgets, in a
separate thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.errors import BudgetStopError
from orchestrator.ledger.errors import PriceBookError, UnknownPriceError
from orchestrator.ledger.meter import Spent
from orchestrator.ledger.money import AMOUNT_PLACES, rounded

if TYPE_CHECKING:
    from orchestrator.launch.budgets import BudgetWarning, RunBudgets
    from orchestrator.ledger.ledger import Ledger

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Receives budget events, in the shipper's thread."""

    def on_warning(self, warned: BudgetWarning) -> None:
        """A budget has crossed a threshold."""
        ...

    def on_refusal(self, reason: BudgetStopError) -> None:
        """A budget does not cover the next period of work, so the run must stop."""
        ...

    def on_exhausted(self, reason: BudgetStopError) -> None:
        """The run was asked to stop, and still runs at the end of its reservation: cancel it."""
        ...


class UsageShipper:
    """Ships new spool lines, computes the cost of the run so far, and reserves money for its next steps: once
    immediately, and then every `every_seconds`.

    An unavailable ledger does not stop the run. The events stay in the spool, the cost is not updated, and
    the next round tries again, including the shared budgets. In the meantime the run's own budget is enforced
    using an estimate. `close` ships and settles the rest.
    """

    def __init__(
        self,
        open_ledger: Callable[[], Ledger],
        spool: Path,
        run_id: str,
        every_seconds: float,
        budgets: RunBudgets,
    ) -> None:
        self._open_ledger, self._spool, self._run_id = open_ledger, spool, run_id
        self._every_seconds, self._budgets = every_seconds, budgets
        self._ended = threading.Event()
        self._first_round = threading.Event()
        self._ledger: Ledger | None = None
        self._spent: Spent | None = None
        self._shipped = False
        self._troubled: set[str] = set()
        self._refusal_reported = self._exhaustion_reported = False
        self._thread: threading.Thread | None = None

    @property
    def spent(self) -> Spent | None:
        """The cost of the run at the last round, in the price book's currency; None before the first."""
        return self._spent

    def hold(self, accelerators: int) -> None:
        """The run now holds this many accelerators, by which the cost of its next steps is estimated."""
        self._budgets.accelerators = accelerators

    def start(self, listener: Listener) -> None:
        """Start the thread. Call it once, before `close`."""
        self._thread = threading.Thread(
            target=self._work, args=(listener,), name="usage-shipper", daemon=True
        )
        self._thread.start()

    def wait_for_first_round(self, seconds: float) -> None:
        """Wait until the budgets were checked for the first time, for at most `seconds`."""
        self._first_round.wait(seconds)

    def close(self) -> bool:
        """Ship the rest and stop. Returns whether everything is in the ledger."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        return self._shipped

    def _work(self, listener: Listener) -> None:
        ending = False
        while True:
            cost = self._ship()
            self._keep_within_budgets(listener, cost, ending)
            self._first_round.set()
            if ending:
                return
            ending = self._ended.wait(self._every_seconds)

    def _ship(self) -> Decimal | None:
        """The cost of the run until now; None if the ledger is unavailable or cannot price the run."""
        try:
            self._ledger = self._ledger or self._open_ledger()
            self._ledger.ship(self._spool)
            self._shipped = True
            self._spent = self._ledger.spent_so_far(self._run_id)
        except (PriceBookError, UnknownPriceError) as error:
            adopt = "orchestrator cost prices adopt FILE"
            self._say_once(
                "prices",
                f"the ledger can't price this run ({adopt}); its limit is enforced on an estimate: {error}",
            )
            return None
        except Exception as error:  # noqa: BLE001 - no error of a database may end the run or this thread
            self._shipped = False
            self._say_once("ledger", f"the ledger can't be reached, events stay in {self._spool}: {error}")
            return None
        self._troubled -= {"ledger", "prices"}
        return rounded(self._spent.amount, AMOUNT_PLACES)

    def _keep_within_budgets(self, listener: Listener, cost: Decimal | None, ending: bool) -> None:
        ledger = None if cost is None else self._ledger
        try:
            if not ending:
                for warned in self._budgets.round(ledger, cost):
                    listener.on_warning(warned)
            elif ledger is not None and cost is not None:
                self._budgets.close(ledger, cost)
        except Exception as error:  # noqa: BLE001 - as above
            self._say_once("budgets", f"the budgets can't be checked: {error}")
        else:
            self._troubled.discard("budgets")
        if self._budgets.refusal and not self._refusal_reported:
            self._refusal_reported = True
            reason = f"the run cost {self._budgets.spent} so far; {self._budgets.refusal}"
            listener.on_refusal(BudgetStopError(reason))
        if self._budgets.exhausted and not ending and not self._exhaustion_reported:
            self._exhaustion_reported = True
            reason = f"the run cost {self._budgets.spent} so far; {self._budgets.exhausted}: cancelled"
            listener.on_exhausted(BudgetStopError(f"{reason} in the middle of a step"))

    def _say_once(self, about: str, text: str) -> None:
        """Warn once per outage, since rounds come every few seconds."""
        if about not in self._troubled:
            logger.warning(text)
        self._troubled.add(about)
