"""Says in one sentence what the learner waited for, and estimates what one more worker would change.

The learner *waits* while a step runs and no learner rank works. A wait counts for what the critical
path does meanwhile. The sentence names the largest of these.

The estimate for one more worker scales the generation (or scoring) on the critical path. Everything else
stays the same:

    saved  = the smaller of: what the learner waits for generation, and
             generation on the critical path x (1 - share after / share before)
    change = price x (accelerators of the run and of the new worker) x (step - saved)
             - price x accelerators of the run x step

`share` is the largest part of a step's work that one worker gets. In synchronous training a step's P prompts
are divided evenly into whole groups: ceil(P / W) of P for W workers. In asynchronous training, workers take
requests one after another: 1 / W. Scoring: of the W blocks of a step, ceil(W / R) for R reward workers.

Assumptions: the time of a request is proportional to its number of groups; workers are equally fast; nothing
else becomes slower. A request never ends before its longest rollout, so where a few long rollouts dominate,
the saving is smaller: it is an upper bound. `price` is what the run has paid on average for an
accelerator-hour, from its own metrics. Without it, no cost is stated. A reward worker shares the slot of a
rollout worker and costs nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from orchestrator.clock import NANOSECONDS
from orchestrator.runs.timeline.critical_path import CONTROLLER, Segment
from orchestrator.runs.timeline.spans import (
    EVALUATE,
    GENERATE,
    LEARNER,
    REWARD,
    ROLLOUT,
    SCORE,
    SYNC,
    ActorSpan,
)
from orchestrator.runs.timeline.steps import StepWindow

BUSY_FROM = 0.95
"""A learner that works for this share of the time is called the bottleneck."""


@dataclass(frozen=True, slots=True)
class RunShape:
    """What the estimate needs to know about a run. None: unknown."""

    rollout_workers: int
    """1 or more, as are the reward workers."""
    reward_workers: int
    accelerators: int
    accelerators_per_rollout_worker: int
    prompts_per_step: int | None
    synchronous: bool
    price_per_hour: Decimal | None
    currency: str


@dataclass(frozen=True, slots=True)
class StepAccount:
    """Where the time of some steps went; of one step, or the sums over several. All times are ns."""

    steps: int
    first: int
    last: int
    ns: int
    waits_ns: Mapping[str, int]
    """What the learner waited for: `generate`, `score`, `evaluate`, `sync`, `controller`, or the name of
    another activity.
    """
    path_ns: Mapping[str, int]
    """The critical path, by the same names; the learner's own work is under `learner`."""
    waited_for: Mapping[str, str]
    """The actor of each wait; empty if there were several. For `controller`, the actor that began when the
    longest such wait was over.
    """

    def __add__(self, other: StepAccount) -> StepAccount:
        return StepAccount(
            self.steps + other.steps,
            min(self.first, other.first),
            max(self.last, other.last),
            self.ns + other.ns,
            _sums(self.waits_ns, other.waits_ns),
            _sums(self.path_ns, other.path_ns),
            {
                name: actor if other.waited_for.get(name, actor) == actor else ""
                for name, actor in {**other.waited_for, **self.waited_for}.items()
            },
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one more worker of `role` would change, per step. `cost` is None if there is no price."""

    role: str
    saved_seconds: float
    cost: Decimal | None


def account(window: StepWindow, path: Sequence[Segment], spans: Sequence[ActorSpan]) -> StepAccount:
    """Account for one step."""
    busy = _union([span for span in spans if span.role == LEARNER])
    waits: dict[str, int] = {}
    on_path: dict[str, int] = {}
    longest: dict[str, tuple[int, str]] = {}
    followers = [*(segment.actor for segment in path[1:]), ""]
    for segment, follower in zip(path, followers, strict=True):
        name = _name(segment)
        on_path[name] = on_path.get(name, 0) + segment.ns
        idle = segment.ns - _covered(busy, segment.start_ns, segment.end_ns)
        if segment.role != LEARNER and idle > 0:
            waits[name] = waits.get(name, 0) + idle
            actor = follower if segment.role == CONTROLLER else segment.actor
            longest[name] = max(longest.get(name, (0, "")), (idle, actor))
    waited_for = {name: actor for name, (_, actor) in longest.items()}
    return StepAccount(1, window.step, window.step, window.ns, waits, on_path, waited_for)


def estimate(found: StepAccount, shape: RunShape) -> Estimate | None:
    """What one more worker of the kind that the learner waits for most would change; None if it waits for
    something that no worker of a pool does.
    """
    cause = _largest(found.waits_ns)
    if cause == GENERATE:
        saved = _saved(found, GENERATE, _less_generation(shape))
        return Estimate(ROLLOUT, saved, _cost(found, saved, shape))
    if cause == SCORE:
        less = _less(shape.rollout_workers, shape.reward_workers)
        return Estimate(REWARD, _saved(found, SCORE, less), None)
    return None


def sentence(found: StepAccount, shape: RunShape) -> str:
    """What the learner waited for, and what one more worker would change."""
    when = f"in step {found.last}" if found.steps == 1 else f"over steps {found.first} to {found.last}"
    waited = sum(found.waits_ns.values())
    if not found.ns or waited <= (1 - BUSY_FROM) * found.ns:
        share = 1 - waited / found.ns if found.ns else 1.0
        return (
            f"{_capital(when)} the learner worked {share:.0%} of the time: it is the bottleneck, and more"
            " rollout workers would save nothing."
        )
    cause = _largest(found.waits_ns)
    wait = found.waits_ns[cause]
    seconds = _seconds(wait / found.steps / NANOSECONDS)
    per = "" if found.steps == 1 else " per step"
    text = (
        f"{_capital(when)} the learner waited {wait / found.ns:.0%} of the time for"
        f" {_phrase(cause, found.waited_for.get(cause, ''))}, {seconds}{per}"
    )
    guess = estimate(found, shape)
    return f"{text}; {_advice(guess, shape)}." if guess is not None else f"{text}."


def _advice(guess: Estimate, shape: RunShape) -> str:
    more = f"one more {guess.role} worker would"
    if guess.saved_seconds < 0.0005:
        return f"{more} save nothing{_why_nothing(guess, shape)}"
    saves = f"{more} save at most {_seconds(guess.saved_seconds)} per step"
    if guess.role == REWARD:
        return saves
    if guess.cost is None:
        return f"{saves}; its cost is unknown, because the run has no prices"
    change = "add" if guess.cost >= 0 else "take"
    amount = f"{_money(abs(guess.cost))} {shape.currency}".rstrip()
    return f"{saves} and {change} {amount} {'to' if guess.cost >= 0 else 'off'} its cost"


def _why_nothing(guess: Estimate, shape: RunShape) -> str:
    if guess.role == REWARD:
        share, what = _ceil(shape.rollout_workers, shape.reward_workers), f"{shape.rollout_workers} blocks"
    elif shape.synchronous and shape.prompts_per_step:
        share = _ceil(shape.prompts_per_step, shape.rollout_workers)
        what = f"{shape.prompts_per_step} prompts"
    else:
        return ""
    return f", because one worker would still get {share} of the {what} of a step"


def _phrase(cause: str, actor: str) -> str:
    whose = f" ({actor})" if actor else ""
    begins = f" (most of it before {actor} began)" if actor else ""
    phrases = {
        GENERATE: f"the longest rollout{whose}",
        SCORE: f"the scoring of rollouts{whose}",
        EVALUATE: "the evaluation of held-out prompts",
        SYNC: f"rollout workers to load new weights{whose}",
        CONTROLLER: f"calls and the controller, between the work of actors{begins}",
    }
    return phrases.get(cause, f"{cause}{whose}")


def _name(segment: Segment) -> str:
    if segment.evaluates:
        return EVALUATE
    if segment.role in (LEARNER, CONTROLLER):
        return segment.role
    return segment.activity


def _less_generation(shape: RunShape) -> float:
    """The part of generation on the critical path that one more rollout worker takes away."""
    if shape.synchronous and shape.prompts_per_step:
        return _less(shape.prompts_per_step, shape.rollout_workers)
    return 1 / (shape.rollout_workers + 1)


def _less(parts: int, workers: int) -> float:
    """By how much the largest share of `parts` shrinks with one more worker.

    >>> _less(6, 2), _less(4, 2)
    (0.33333333333333337, 0.0)
    """
    return 1 - _ceil(parts, workers + 1) / _ceil(parts, workers)


def _saved(found: StepAccount, name: str, less: float) -> float:
    """Seconds per step."""
    saved = min(found.waits_ns.get(name, 0), found.path_ns.get(name, 0) * less)
    return saved / found.steps / NANOSECONDS


def _cost(found: StepAccount, saved: float, shape: RunShape) -> Decimal | None:
    if shape.price_per_hour is None:
        return None
    seconds, now = found.ns / found.steps / NANOSECONDS, shape.accelerators
    then = now + shape.accelerators_per_rollout_worker
    return shape.price_per_hour * Decimal(repr(then * (seconds - saved) - now * seconds)) / 3600


def _union(spans: Sequence[ActorSpan]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for span in sorted(spans, key=lambda span: span.start_ns):
        if merged and span.start_ns <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], span.end_ns))
        else:
            merged.append((span.start_ns, span.end_ns))
    return merged


def _covered(intervals: Sequence[tuple[int, int]], start_ns: int, end_ns: int) -> int:
    return sum(max(0, min(end, end_ns) - max(start, start_ns)) for start, end in intervals)


def _sums(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}


def _largest(amounts: Mapping[str, int]) -> str:
    return max(amounts, key=lambda name: (amounts[name], name), default="")


def _ceil(whole: int, parts: int) -> int:
    return -(-whole // parts)


def _seconds(seconds: float) -> str:
    """Two significant digits, or whole numbers.

    >>> _seconds(0.00123), _seconds(0.0996), _seconds(3.14), _seconds(4321.0)
    ('1.2 ms', '100 ms', '3.1 s', '4,321 s')
    """
    value, unit = (1000 * seconds, "ms") if seconds < 0.1 else (seconds, "s")
    return f"{value:.2g} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"


def _money(amount: Decimal) -> str:
    """Two decimals, or two significant digits of a small amount."""
    small = 0 < amount < Decimal("0.1")
    return f"{amount:.{1 - amount.adjusted()}f}" if small else f"{amount:,.2f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
