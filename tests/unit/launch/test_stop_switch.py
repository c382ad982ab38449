"""Stopping and cancelling runs through the stop switch."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from orchestrator.errors import BudgetStopError, DrainedError, OrchestratorError
from orchestrator.launch.attempt import StopSwitch
from orchestrator.training.loop import TrainingLoop


class Loop:
    """A loop whose step never ends."""

    def __init__(self) -> None:
        self.asked: list[OrchestratorError] = []
        self.cleaned_up = False

    def request_stop(self, reason: OrchestratorError) -> None:
        self.asked.append(reason)

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # giving things back takes a moment
            self.cleaned_up = True


async def run(switch: StopSwitch, loop: Loop) -> None:
    with switch.connected(cast(TrainingLoop, loop)):
        await loop.run()


async def until_it_runs() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_cancelled_loop_raises_the_reason_after_its_cleanup() -> None:
    async def scenario() -> None:
        switch, loop = StopSwitch(), Loop()
        task = asyncio.ensure_future(run(switch, loop))
        await until_it_runs()
        asked, broken = BudgetStopError("refused"), BudgetStopError("exhausted")
        switch.ask(asked)
        await until_it_runs()
        assert loop.asked == [asked] and not task.done()
        switch.cancel(broken)
        switch.cancel(BudgetStopError("again"))
        with pytest.raises(BudgetStopError, match="exhausted"):
            await task
        assert loop.cleaned_up and task.cancelling() == 0

    asyncio.run(scenario())


def test_a_budget_cancellation_after_a_requested_stop_is_reported() -> None:
    async def scenario() -> None:
        switch, loop = StopSwitch(), Loop()
        task = asyncio.ensure_future(run(switch, loop))
        await until_it_runs()
        switch.ask(DrainedError("SIGINT"))
        switch.cancel(BudgetStopError("exhausted"))
        with pytest.raises(BudgetStopError, match="exhausted"):
            await task

    asyncio.run(scenario())


def test_other_cancellations_are_not_changed() -> None:
    async def scenario() -> None:
        switch, loop = StopSwitch(), Loop()
        task: asyncio.Task[Any] = asyncio.ensure_future(run(switch, loop))
        await until_it_runs()
        switch.cancel(BudgetStopError("exhausted"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_cancelling_without_a_running_job_does_nothing() -> None:
    switch = StopSwitch()
    switch.cancel(BudgetStopError("exhausted"))
    assert switch.asked


def test_a_stop_can_be_requested_from_any_thread() -> None:
    async def scenario() -> None:
        stop, loop = StopSwitch(), Loop()
        with stop.attached(drain_seconds=1e6):
            task = asyncio.ensure_future(run(stop, loop))
            await until_it_runs()
            reason = DrainedError("SIGTERM")
            await asyncio.to_thread(stop.ask, reason)
            await until_it_runs()
            assert loop.asked == [reason]
            await asyncio.to_thread(stop.cancel, reason)
            with pytest.raises(DrainedError):
                await task

    asyncio.run(scenario())


def test_a_drain_that_takes_too_long_cancels_the_step() -> None:
    async def scenario() -> None:
        stop, loop = StopSwitch(), Loop()
        with stop.attached(drain_seconds=0.01):
            task = asyncio.ensure_future(run(stop, loop))
            await until_it_runs()
            stop.ask(DrainedError("Stopped by SIGTERM."))
            with pytest.raises(DrainedError, match=r"Stopped by SIGTERM\..*checkpoint\.drain_seconds"):
                await task
        assert loop.cleaned_up

    asyncio.run(scenario())


def test_a_job_that_is_still_starting_is_cancelled_and_raises_the_reason() -> None:
    async def scenario() -> None:
        stop = StopSwitch()

        async def start() -> None:
            with stop.starting():
                await asyncio.Event().wait()

        with stop.attached(drain_seconds=1e6):
            task = asyncio.ensure_future(start())
            await until_it_runs()
            await asyncio.to_thread(stop.ask, DrainedError("SIGHUP"))
            with pytest.raises(DrainedError, match="SIGHUP"):
                await task
            with pytest.raises(DrainedError, match="SIGHUP"), stop.starting():
                raise AssertionError("nothing starts any more")

    asyncio.run(scenario())


def test_a_request_before_the_job_runs_takes_effect() -> None:
    async def scenario() -> None:
        stop, loop = StopSwitch(), Loop()
        stop.ask(DrainedError("SIGINT"))
        with stop.attached(drain_seconds=1e6), stop.connected(cast(TrainingLoop, loop)):
            assert [str(reason) for reason in loop.asked] == ["SIGINT"]

    asyncio.run(scenario())
