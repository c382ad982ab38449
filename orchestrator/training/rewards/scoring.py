"""Applies plain, asynchronous and batched scorers to rollouts. Failures are returned as values."""

from __future__ import annotations

import contextlib
import inspect
import math
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

from orchestrator.training.records import ScoreStatus
from orchestrator.training.rewards.completion import AnyScorer, Completion, PreparedScorer

REASON_LENGTH = 500
TRACEBACK_LENGTH = 4000
TRACEBACK_FRAMES = 12
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of scoring one rollout. If the status is OK, `components` has a number for
    each scorer. Otherwise `reason` describes the failure in one line, and `traceback` shows
    where a scorer raised an exception.
    """

    status: ScoreStatus
    components: tuple[float, ...] = ()
    reason: str = ""
    traceback: str = ""


class ScorerSet:
    """The scorers of a rubric, by component name. `timeout_seconds` limits each rollout of asynchronous
    scorers; plain scorers can only be limited from outside the process.
    """

    def __init__(self, scorers: Mapping[str, AnyScorer], timeout_seconds: float | None = None) -> None:
        self._scorers = dict(scorers)
        self._timeout_seconds = timeout_seconds
        self.asynchronous = any(map(is_asynchronous, scorers.values()))
        self.batched = any(map(is_batched, scorers.values()))

    def prepare(self, references: Sequence[Mapping[str, Any]]) -> None:
        """Let the scorers load their resources. Their exceptions are not caught."""
        for scorer in self._scorers.values():
            if isinstance(scorer, PreparedScorer):
                scorer.prepare(references)

    def score_now(self, completions: Sequence[Completion]) -> list[Outcome]:
        """Score rollouts synchronously. An event loop is only started if a scorer needs it."""
        if self.asynchronous:
            import asyncio  # this import takes a third of the start-up time of a process that may not need it

            return asyncio.run(self._score_together(completions))
        return _finished(self.score(completions))

    async def score(self, completions: Sequence[Completion]) -> list[Outcome]:
        """Score rollouts; batched scorers get all of them in one call. After the first scorer that fails for
        a rollout, the others are skipped, because the sum would be incomplete.
        """
        outcomes: list[Outcome | None] = [None] * len(completions)
        numbers: list[list[float]] = [[] for _ in completions]
        name = ""
        try:
            async with self._time_limit():
                for name, scorer in self._scorers.items():
                    rows = [row for row, outcome in enumerate(outcomes) if outcome is None]
                    found = await _apply(name, scorer, [completions[row] for row in rows])
                    for row, one in zip(rows, found, strict=True):
                        if isinstance(one, Outcome):
                            outcomes[row] = one
                        else:
                            numbers[row].append(one)
        except TimeoutError:
            late = Outcome(ScoreStatus.TIMEOUT, reason=f"{name}: no score within {self._timeout_seconds:g} s")
            outcomes = [outcome or late for outcome in outcomes]
        return [
            outcome or Outcome(ScoreStatus.OK, tuple(components))
            for outcome, components in zip(outcomes, numbers, strict=True)
        ]

    def _time_limit(self) -> contextlib.AbstractAsyncContextManager[Any]:
        if not self.asynchronous:
            return _NoTimeout()
        import asyncio

        return asyncio.timeout(self._timeout_seconds)

    async def _score_together(self, completions: Sequence[Completion]) -> list[Outcome]:
        if self.batched:
            return await self.score(completions)
        import asyncio

        found = await asyncio.gather(*(self.score([completion]) for completion in completions))
        return [outcome for outcomes in found for outcome in outcomes]


class _NoTimeout(contextlib.AbstractAsyncContextManager[None]):
    """Plain scorers run without an event loop and have no await at which a timeout could interrupt them."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


def is_asynchronous(scorer: AnyScorer) -> bool:
    return inspect.iscoroutinefunction(scorer) or inspect.iscoroutinefunction(
        getattr(type(scorer), "__call__", None)  # noqa: B004 - the method, not whether there is one
    )


def is_batched(scorer: AnyScorer) -> bool:
    return bool(getattr(scorer, "batched", False))


async def _apply(name: str, scorer: AnyScorer, completions: Sequence[Completion]) -> list[float | Outcome]:
    """Apply one scorer to each rollout. Returns a number or the failure of each."""
    if not is_batched(scorer):
        return [await _score_one(name, scorer, completion) for completion in completions]
    if not completions:
        return []
    try:
        values: Any = scorer(list(completions))
        values = list(await values if inspect.isawaitable(values) else values)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a scorer may raise anything; it is data here
        if len(completions) == 1:
            return [crashed(name, error)]
        # One rollout's failure must not cost the others their scores.
        return [each for one in completions for each in await _apply(name, scorer, [one])]
    if len(values) != len(completions):
        why = f"{name}: returned {len(values)} numbers for {len(completions)} completions"
        return [Outcome(ScoreStatus.INVALID, reason=why)] * len(completions)
    return [_number(name, value) for value in values]


async def _score_one(name: str, scorer: AnyScorer, completion: Completion) -> float | Outcome:
    try:
        value = scorer(completion)
        if is_asynchronous(scorer):
            value = await value
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return crashed(name, error)
    if inspect.iscoroutine(value):
        value.close()
        why = f"{name}: returned a coroutine; declare it with `async def` so that it is awaited"
        return Outcome(ScoreStatus.INVALID, reason=why)
    return _number(name, value)


def crashed(name: str, error: BaseException) -> Outcome:
    """The outcome of a rollout whose scorer raised an exception."""
    reason = printable(f"{name}: {_described(error)}")[:REASON_LENGTH]
    return Outcome(ScoreStatus.CRASHED, reason=reason, traceback=_traceback(error))


def printable(text: str) -> str:
    """Escape lone surrogates, which neither files nor terminals accept."""
    return text.encode("utf-8", "backslashreplace").decode()


def _described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - `str(error)` may run user code
        return type(error).__name__


def _traceback(error: BaseException) -> str:
    """Format the frames of the scorer, without the frames of this module that called it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    try:
        lines = traceback.format_exception(type(error), error, trace, limit=-TRACEBACK_FRAMES)
    except Exception:  # noqa: BLE001
        return ""
    return printable("".join(lines))[-TRACEBACK_LENGTH:]


def _number(name: str, value: object) -> float | Outcome:
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        number = math.nan
    if math.isfinite(number):
        return number
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001
        shown = f"a {type(value).__name__}"
    reason = printable(f"{name}: not a finite number: {shown}")[:REASON_LENGTH]
    return Outcome(ScoreStatus.INVALID, reason=reason)


def _finished(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that never waits to completion without an event loop, because a
    plain scorer may start its own.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("a plain scorer was awaited")
