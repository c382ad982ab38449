"""Detects runs that do not learn: the loss is finite and steps complete, but the
rollouts carry no training signal.

Each check looks at the metrics of one step. A problem is reported once, after it has held without
interruption for `START_STEPS` steps from the first step of the run (or for all steps of a shorter run), or
for `LATER_STEPS` steps at any later time: a single odd batch late in a run is normal, but not from the
first step on. The checks are ordered from cause to consequence, and only the first one that holds is
reported: if all rollouts are cut off, there are no answers, so all rewards are equal and the gradient is
zero, but the cut-off is the cause.

Equal rewards because all rollouts are correct mean success, except at the start, when the task is too easy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.training.events import TrainingWarning

START_STEPS = 3
"""Steps from the beginning of a run after which a problem is reported."""
LATER_STEPS = 10
"""Steps after which a problem that began later is reported."""
NEARLY_ALL = 0.98
"""This share of the rollouts counts as all of them, because a single lucky rollout in a
hundred must not hide a problem.
"""
NO_SPREAD = 1e-9
"""Standard deviations and gradient norms up to this value count as rounding errors."""

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class LearningSignal:
    """The source of the run's gradient."""

    imitates: bool
    """The rollouts are worked solutions, which the model imitates; rewards are only reported."""
    group_relative: bool
    """Advantages compare the rollouts of one group, so a group of equal rewards has no gradient."""


@dataclass(frozen=True, slots=True)
class _Check:
    problem: str
    holds: Callable[[Metrics], bool]
    what: str
    advice: str
    imitation: bool
    """Whether the check also applies to runs that imitate worked solutions."""


def _grades_failed(metrics: Metrics) -> bool:
    return metrics.get("reward/failed_fraction", 0.0) >= NEARLY_ALL


def _all_truncated(metrics: Metrics) -> bool:
    return metrics.get("rollout/truncated_fraction", 0.0) >= NEARLY_ALL


def _no_answers(metrics: Metrics) -> bool:
    return metrics.get("rollout/answered_fraction", 1.0) <= 1 - NEARLY_ALL


def _equal_rewards(metrics: Metrics) -> bool:
    return metrics.get("reward/std", 1.0) <= NO_SPREAD


def _no_informative_group(metrics: Metrics) -> bool:
    return metrics.get("rollout/informative_fraction", 1.0) == 0.0


def _no_gradient(metrics: Metrics) -> bool:
    return metrics.get("policy/grad_norm", 1.0) <= NO_SPREAD


CHECKS = (
    _Check(
        "grades_failed",
        _grades_failed,
        "No rollout could be scored.",
        "Look at `orchestrator rollouts RUN --failed`, and try the reward with `orchestrator reward try`.",
        imitation=True,
    ),
    _Check(
        "all_truncated",
        _all_truncated,
        "Every rollout is cut off at rollout.max_new_tokens or at the model's context.",
        "Raise rollout.max_new_tokens, or check that the model ends its answers (chat template).",
        imitation=True,
    ),
    _Check(
        "no_answers",
        _no_answers,
        "No rollout has an answer that the reward can find.",
        "Compare the rollouts (`orchestrator rollouts RUN`) with the answer format that the reward expects; "
        "the task's template should ask for that format.",
        imitation=True,
    ),
    _Check(
        "equal_rewards",
        _equal_rewards,
        "All rollouts have the same reward, so no rollout is better than another.",
        "If all are wrong, use a stronger model, a cold start or an easier task; if all are right, the task "
        "is solved. A reward that never varies may also be a bug: try it with `orchestrator reward try`.",
        imitation=False,
    ),
    _Check(
        "no_informative_group",
        _no_informative_group,
        "Within every group all rewards are equal, so every advantage is zero.",
        "Raise rollout.group_size or rollout.temperature, or choose prompts that the model solves sometimes.",
        imitation=False,
    ),
    _Check(
        "no_gradient",
        _no_gradient,
        "The gradient is zero, so the model does not change.",
        "Check learner.learning_rate, the loss's clip range and that some tokens are trained on.",
        imitation=True,
    ),
)


class TrainingHealth:
    """Watches a run of `steps` steps. `observe` must be called for each of them in order."""

    def __init__(self, signal: LearningSignal, steps: int) -> None:
        self._checks = tuple(_relevant_checks(signal))
        self._start_steps = min(START_STEPS, steps)
        self._steps = 0
        self._first_step: int | None = None
        self._streaks = dict.fromkeys((check.problem for check in self._checks), 0)
        """For how many consecutive steps each check has held."""
        self._accuracies: deque[float] = deque(maxlen=LATER_STEPS)
        """The accuracy of the newest steps."""
        self._reported: set[str] = set()

    def restart(self, history: Iterable[tuple[int, Metrics]]) -> None:
        """Continue after the steps in `history`, which come from an earlier attempt or precede a rollback.
        Their problems were already reported.
        """
        self._steps, self._first_step = 0, None
        self._streaks = dict.fromkeys(self._streaks, 0)
        self._accuracies.clear()
        for step, metrics in history:
            self.observe(step, metrics)

    def observe(self, step: int, metrics: Metrics) -> TrainingWarning | None:
        """Return the problem that this step confirms; None if there is none, or if it was reported before."""
        if "reward/mean" not in metrics:
            return None  # an evaluation before the first step
        self._steps += 1
        self._first_step = step if self._first_step is None else self._first_step
        self._accuracies.append(metrics.get("accuracy/train", 0.0))
        for check in self._checks:
            self._streaks[check.problem] = self._streaks[check.problem] + 1 if check.holds(metrics) else 0
        found = next((check for check in self._checks if self._is_certain(check)), None)
        if found is None or found.problem in self._reported or self._is_success(found):
            return None
        self._reported.add(found.problem)
        return TrainingWarning(step, found.problem, found.what, found.advice)

    def _is_certain(self, check: _Check) -> bool:
        needed = self._start_steps if self._holds_from_the_start(check) else LATER_STEPS
        return self._streaks[check.problem] >= needed

    def _holds_from_the_start(self, check: _Check) -> bool:
        return self._first_step == 1 and self._streaks[check.problem] == self._steps

    def _is_success(self, found: _Check) -> bool:
        """Whether the signal is gone because everything has been learnt. A single step decides nothing: one
        prompt that is always answered wrongly may be 3 % of its batch.
        """
        solved = sum(self._accuracies) / len(self._accuracies) >= NEARLY_ALL
        return solved and not self._holds_from_the_start(found)


def _relevant_checks(signal: LearningSignal) -> Iterator[_Check]:
    for check in CHECKS:
        if signal.imitates and not check.imitation:
            continue
        if check.problem == "no_informative_group" and not signal.group_relative:
            continue
        yield check
