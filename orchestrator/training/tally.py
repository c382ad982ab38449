"""Adds up what happens between two reports, and turns it into the metrics of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.clock import Clock
from orchestrator.errors import FailureBudgetExceededError
from orchestrator.training.records import Batch, GroupTicket, StepReport, TokenWork
from orchestrator.training.stages import Scored, Summary, Updated
from orchestrator.training.timing import StepTimes

MOST_REASONS_SHOWN = 5
"""How many reasons for failed scores a run reports as they happen. All of them are in its files."""


@dataclass(frozen=True, slots=True)
class StepBudgets:
    """What is tolerated in one step; beyond it the run fails."""

    resampled_groups: int
    """Groups discarded because their rollouts were all alike (dynamic sampling)."""
    failed_grades: float
    """Share of the rollouts that could not be graded."""


class StepTally:
    """The rollouts that arrived, the groups that were discarded and the time that passed since
    the last report.
    """

    def __init__(self, budgets: StepBudgets, clock: Clock) -> None:
        self._budgets = budgets
        self.times = StepTimes(clock)
        self._summary: Summary | None = None
        self._resampled = self._solved = 0
        self._reasons_seen: set[str] = set()

    def arrived(self, scored: Scored) -> str:
        """A request was generated and scored. Describes a rollout that could not be scored if its reason is
        new; empty otherwise.
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
        """Whether this step takes groups without a signal: its budget for replacing them is used up, and most
        of those that it replaced were solved, so the task is nearly learned.
        """
        return self._resampled >= self._budgets.resampled_groups and 2 * self._solved > self._resampled

    def resampled(self, groups: Sequence[GroupTicket]) -> None:
        """Groups without a signal were discarded. Raises FailureBudgetExceededError if they are too many for
        one step and most of them are unsolved.
        """
        self._resampled += len(groups)
        self._solved += sum(group.solved for group in groups)
        budget = self._budgets.resampled_groups
        if self._resampled > budget and not self.trains_on_solved_groups:
            raise FailureBudgetExceededError(
                "groups without a signal in one step",
                self._resampled,
                budget,
                "most had no right rollout: the task is too hard for the model",
            )

    def forget(self) -> None:
        """Drop everything so far: these steps are repeated from a checkpoint."""
        self._summary, self._resampled, self._solved = None, 0, 0
        self.times.forget()

    def report(
        self, batch: Batch, updated: Updated, evaluated: Mapping[str, float], refused: int
    ) -> StepReport:
        """The metrics of the step that trained on `batch`: the learner's, the evaluation's, sums over the
        rollouts that arrived since the last report, and where the time went. `refused` groups were
        refused by the buffer.

        Raises FailureBudgetExceededError if too many rollouts could not be graded.
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
        }
        self._summary, self._resampled, self._solved = None, 0, 0
        return StepReport(batch.step + 1, metrics, learned.routing, learned.trained, sampled)

    def _check_grades(self, arrived: Mapping[str, float]) -> None:
        failed, budget = arrived.get("reward/failed_fraction", 0.0), self._budgets.failed_grades
        if failed > budget:
            rollouts = round(arrived["rollout/count"])
            example = self._summary.failure.partition("\n")[0] if self._summary else ""
            raise FailureBudgetExceededError(
                "rollouts that could not be graded in one step",
                round(failed * rollouts),
                int(budget * rollouts),
                f"{example}; `orchestrator rollouts RUN --failed` shows all of them, with tracebacks",
            )


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)
