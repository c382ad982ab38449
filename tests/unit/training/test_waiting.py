"""When a wait is longer than usual, what is said of it, and when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orchestrator.errors import WorkerLostError
from orchestrator.training.events import WaitEnded, Waiting, WaitKind, event_fields
from orchestrator.training.records import Batch, BlockRef, GroupTicket, ScoreRef
from orchestrator.training.simulation.stages import Draws, Faults, SimulatedLearner, Timing
from orchestrator.training.simulation.virtual_time import VirtualClock, run_in_virtual_time
from orchestrator.training.waiting import FIRST_SECONDS, REMEMBERED, Waits, WatchedLearner

SECOND = 1_000_000_000
Event = Waiting | WaitEnded


def told(body: Callable[[Waits], Awaitable[None]]) -> list[tuple[float, Event]]:
    """(virtual second, event) of everything that is reported while `body` runs."""
    events: list[tuple[float, Event]] = []

    async def main() -> None:
        clock = VirtualClock()
        waits = Waits(lambda event: events.append((clock.now_ns() / SECOND, event)), clock)
        await body(waits)

    run_in_virtual_time(main())
    return events


async def wait(waits: Waits, seconds: float, what: WaitKind = WaitKind.SCORE) -> None:
    with waits.on(what, "reward-0"):
        await asyncio.sleep(seconds)


def test_the_first_wait_of_a_kind_is_reported_after_a_minute() -> None:
    async def body(waits: Waits) -> None:
        await wait(waits, FIRST_SECONDS - 1)
        assert waits.patience_seconds(WaitKind.SCORE) == 3 * (FIRST_SECONDS - 1)

    assert told(body) == []
    (began, waiting), (ended, over) = told(lambda waits: wait(waits, 100.0))
    assert (began, waiting) == (60.0, Waiting(WaitKind.SCORE, "reward-0", 0, None, ""))
    assert (ended, over) == (100.0, WaitEnded(WaitKind.SCORE, "reward-0", 100.0))


def test_a_wait_is_compared_with_earlier_ones_of_its_kind() -> None:
    async def body(waits: Waits) -> None:
        for seconds in (4.0, 5.0, 6.0):
            await wait(waits, seconds)
        await wait(waits, 300.0, WaitKind.UPDATE)  # another kind: its first
        assert waits.patience_seconds(WaitKind.SCORE) == 15.0  # 3 x 5, of 4, 5 and 6
        await wait(waits, 14.9)
        await wait(waits, 20.0)

    events = told(body)
    assert [(event.what, at) for at, event in events if isinstance(event, Waiting)] == [
        (WaitKind.UPDATE, 15.0 + 60.0),
        # 14.9 s have joined the history: the second longest of four is 6 s.
        (WaitKind.SCORE, pytest.approx(15.0 + 300.0 + 14.9 + 18.0)),
    ]
    (waiting,) = [event for _, event in events if isinstance(event, Waiting) and event.what is WaitKind.SCORE]
    assert waiting.usual_seconds == 5.5


def test_a_wait_of_less_than_ten_seconds_is_never_reported() -> None:
    async def body(waits: Waits) -> None:
        for _ in range(5):
            await wait(waits, 0.01)
        await wait(waits, 9.9)
        await wait(waits, 10.1)

    assert [type(event) for _, event in told(body)] == [Waiting, WaitEnded]


def test_one_long_wait_among_many_does_not_hide_the_next() -> None:
    async def body(waits: Waits) -> None:
        for _ in range(20):
            await wait(waits, 4.0)
        await wait(waits, 600.0)
        await wait(waits, 600.0)

    assert [type(event) for _, event in told(body)] == [Waiting, WaitEnded] * 2


def test_a_run_whose_rollouts_become_longer_gets_used_to_it() -> None:
    async def body(waits: Waits) -> None:
        for _ in range(REMEMBERED):
            await wait(waits, 4.0)
        for _ in range(REMEMBERED):
            await wait(waits, 100.0)
        assert waits.patience_seconds(WaitKind.SCORE) == 300.0

    reported = [event for _, event in told(body) if isinstance(event, Waiting)]
    assert len(reported) == 6  # until one in ten of the last 50 is long


def test_a_wait_that_fails_is_over_and_teaches_nothing() -> None:
    async def body(waits: Waits) -> None:
        with pytest.raises(WorkerLostError), waits.on(WaitKind.GENERATE, "rollout-1"):
            await asyncio.sleep(70.0)
            raise WorkerLostError("rollout-1", "no answer")
        assert waits.patience_seconds(WaitKind.GENERATE) == FIRST_SECONDS

    assert [event.message for _, event in told(body)] == [
        "waiting for rollout-1 to sample rollouts since 00:00:00 UTC",
        "no longer waiting for rollout-1 to sample rollouts, after 70 s",
    ]


def test_of_many_workers_that_are_late_three_are_named() -> None:
    async def body(waits: Waits) -> None:
        async def one(index: int, seconds: float) -> None:
            with waits.on(WaitKind.GENERATE, f"rollout-{index}"):
                await asyncio.sleep(seconds)

        await asyncio.gather(*(one(index, 90.0 + index) for index in range(8)), wait(waits, 100.0))
        await one(9, 300.0)

    events = told(body)
    began = [(event.what, event.where) for _, event in events if isinstance(event, Waiting)]
    ended = [(event.what, event.where) for _, event in events if isinstance(event, WaitEnded)]
    assert sorted(began) == sorted(ended)
    together = began[:-1]
    assert [what for what, _ in together].count(WaitKind.GENERATE) == 3
    assert (WaitKind.SCORE, "reward-0") in together
    assert began[-1] == (WaitKind.GENERATE, "rollout-9")  # there is room for it again


def test_particulars_are_asked_for_when_the_wait_is_reported() -> None:
    async def body(waits: Waits) -> None:
        clock = VirtualClock()
        with waits.on(
            WaitKind.SLOTS,
            "the cluster",
            patience_seconds=5.0,
            describe=lambda: f"{clock.now_ns() // SECOND} CPUs are free",
        ):
            await asyncio.sleep(8.0)

    (_, waiting), _ = told(body)
    assert waiting.message == "waiting for slots of the cluster since 00:00:00 UTC: 5 CPUs are free"


def test_the_event_is_plain_json_with_what_is_usual() -> None:
    waiting = Waiting(WaitKind.PUBLISH, "the learner", 3_723 * SECOND, 1.26, "")
    assert event_fields(waiting) == {
        "what": "publish",
        "where": "the learner",
        "since_ns": 3_723 * SECOND,
        "usual_seconds": 1.26,
        "reason": "",
    }
    assert waiting.message == (
        "waiting for the learner to publish its weights since 01:02:03 UTC (usually 1.3 s)"
    )


@pytest.mark.parametrize("what", list(WaitKind))
def test_every_kind_is_a_sentence(what: WaitKind) -> None:
    assert "reward-0" in Waiting(what, "reward-0", 0, None, "").message
    assert "reward-0" in WaitEnded(what, "reward-0", 12.0).message


def test_the_calls_of_a_learner_are_watched(tmp_path: Path) -> None:
    ticket = GroupTicket(0, "sim/train/0", 0, 10, 0.5, True, 0, BlockRef(None), ScoreRef(None))

    async def body(waits: Waits) -> None:
        timing = Timing(update=61.0, publish=62.0, restart=63.0, write=1000.0)
        learner = WatchedLearner(SimulatedLearner(Draws(0), timing, Faults(), VirtualClock()), waits)
        await learner.update(Batch(0, (ticket,)))
        await learner.publish(1)
        await learner.snapshot(1)
        await learner.write(tmp_path)  # in the background: no wait
        await learner.load(tmp_path)
        await learner.rebuild()
        await learner.export(tmp_path / "model")
        await learner.save(tmp_path, 1)

    reported = [event for _, event in told(body) if isinstance(event, Waiting)]
    assert [event.what for event in reported] == [WaitKind.UPDATE, WaitKind.PUBLISH, WaitKind.START]
