"""Accumulates what happens between two reports, and computes the metrics of a step from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.clock import Clock
from orchestrator.errors import FailureBudgetExceededError
from orchestrator.training.records import Batch, GroupTicket, StepReport, TokenWork
from orchestrator.training.stages import Scored, Summary, Updated
from orchestrator.training.timing import StepTimes

MOST_REASONS_SHOWN = 5
"""How many different reasons of scoring failures a run reports as they
occur. All of them are in its files.
"""


@dataclass(frozen=True, slots=True)
class StepBudgets:
    """The failures that are tolerated in one step. Beyond them the run fails."""

    resampled_groups: int
    """Number of groups discarded because their rollouts were all alike (dynamic sampling)."""
    failed_grades: float
    """Share of the rollouts that could not be scored."""


class StepTally:
    """The rollouts, discarded groups and times since the last report."""

    def __init__(self, budgets: StepBudgets, clock: Clock) -> None:
        self._budgets = budgets
        self.times = StepTimes(clock)
        self._summary: Summary | None = None
        self._resampled = self._solved = 0
        self._reasons_seen: set[str] = set()

    def arrived(self, scored: Scored) -> str:
        """Record the result of a request. Returns a description of a rollout that could not be scored if its
        reason is new; otherwise an empty string.
        """
        self._summary = scored.summary if self._summary is None else self._summary + scored.summary
        failure = scored.summary.failure
        _, _, reason = failure.partition("\n")[0].partition(": ")
        if reason in self._reasons_seen or len(self._reasons_seen) >= MOST_REASONS_SHOWN:
            return ""
        self._reasons_seen |= {reason} if failure else set()
        return failure

    @property
    def trains_on_solved_groups(self) -> bool:
        """Whether this step accepts groups without a training signal: the budget for replacing them is used
        up, and most of the replaced groups were solved, so the task is nearly learned.
        """
        return self._resampled >= self._budgets.resampled_groups and 2 * self._solved > self._resampled

    def resampled(self, groups: Sequence[GroupTicket]) -> None:
        """Record discarded groups without a training signal. Raises FailureBudgetExceededError if there are
        too many in one step and most of them are unsolved.
        """
        self._resampled += len(groups)
        self._solved += sum(group.solved for group in groups)
        budget = self._budgets.resampled_groups
        if self._resampled > budget and not self.trains_on_solved_groups:
            raise FailureBudgetExceededError(
                "groups without a training signal in one step",
                self._resampled,
                budget,
                "most had no correct rollout, so the task is too hard for the model",
            )

    def forget(self) -> None:
        """Drop everything since the last report, because these steps are repeated from a checkpoint."""
        self._summary, self._resampled, self._solved = None, 0, 0
        self.times.forget()

    def report(
        self, batch: Batch, updated: Updated, evaluated: Mapping[str, float], refused: int
    ) -> StepReport:
        """Compute the metrics of the step that trained on `batch`: those of the learner and the
        evaluation, sums over the rollouts since the last report, and times. `refused` is the number of
        groups that the buffer refused.

        Raises FailureBudgetExceededError if too many rollouts could not be scored.
        """
        arrived = self._summary.metrics() if self._summary else {}
        sampled = self._summary.work if self._summary else TokenWork()
        self._check_grades(arrived)
        timing = self.times.take()
        staleness = [batch.step - ticket.oldest_version for ticket in batch.tickets]
        learned = updated.report
        metrics = {
            **arrived,
            **timing,
            **learned.metrics,
            **evaluated,
            "offpolicy/staleness_mean": sum(staleness) / len(staleness),
            "offpolicy/staleness_max": float(max(staleness)),
            "rollout/informative_fraction": _share(ticket.informative for ticket in batch.tickets),
            "rollout/tokens_per_s": arrived.get("rollout/tokens", 0.0) / max(timing["time/step"], 1e-9),
            "rollout/resampled_groups": float(self._resampled),
            "rollout/refused_groups": float(refused),
            "rollout/dropped_groups": float(len(batch.dropped)),
        }
        self._summary, self._resampled, self._solved = None, 0, 0
        return StepReport(batch.step + 1, metrics, learned.routing, learned.trained, sampled)

    def _check_grades(self, arrived: Mapping[str, float]) -> None:
        failed, budget = arrived.get("reward/failed_fraction", 0.0), self._budgets.failed_grades
        if failed > budget:
            rollouts = round(arrived["rollout/count"])
            example = self._summary.failure.partition("\n")[0] if self._summary else ""
            raise FailureBudgetExceededError(
                "rollouts that could not be scored in one step",
                round(failed * rollouts),
                int(budget * rollouts),
                f"{example}; `orchestrator rollouts RUN --failed` shows all of them, with tracebacks",
            )


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)
