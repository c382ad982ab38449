"""The pool in virtual time: assignment of tasks, losses of workers, and cancellations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from orchestrator.errors import DataLostError, FailureBudgetExceededError, WorkerLostError
from orchestrator.training.simulation.virtual_time import DeadlockError, run_in_virtual_time
from orchestrator.training.supervision.pool import WorkerPool

NO_TIME = 1e-9


@dataclass(eq=False)
class Worker:
    name: str
    life: int = 0


@dataclass
class Shop:
    """A pool, the losses that it reported, and the duration of its restarts."""

    count: int = 2
    max_restarts: int = 10
    restart_seconds: float = 5.0
    restart_errors: list[Exception] = field(default_factory=list[Exception])
    lost: list[str] = field(default_factory=list[str])

    def open(self) -> WorkerPool[Worker]:
        workers = [Worker(f"w-{index}") for index in range(self.count)]
        return WorkerPool(
            workers, self._replace, self.max_restarts, lambda lost: self.lost.append(lost.worker)
        )

    async def _replace(self, worker: Worker) -> Worker:
        await asyncio.sleep(self.restart_seconds)
        if self.restart_errors:
            raise self.restart_errors.pop(0)
        return Worker(worker.name, worker.life + 1)


def sleeps(seconds: float) -> Callable[[Worker], Awaitable[str]]:
    async def task(worker: Worker) -> str:
        await asyncio.sleep(seconds)
        return f"{worker.name}/{worker.life}"

    return task


def dies_on(*names: str, error: Exception | None = None) -> Callable[[Worker], Awaitable[str]]:
    """A task that dies on the first incarnations of these workers."""

    async def task(worker: Worker) -> str:
        await asyncio.sleep(1.0)
        if worker.name in names and worker.life == 0:
            raise error or WorkerLostError(worker.name, "died")
        return f"{worker.name}/{worker.life}"

    return task


def now() -> float:
    return asyncio.get_running_loop().time()


def test_tasks_go_to_the_worker_that_has_been_free_the_longest() -> None:
    async def main() -> None:
        pool = Shop(count=3).open()
        assert pool.width == 3
        first = await asyncio.gather(*(pool.call(sleeps(seconds)) for seconds in (3.0, 1.0, 2.0)))
        assert first == ["w-0/0", "w-1/0", "w-2/0"]
        second = await asyncio.gather(*(pool.call(sleeps(1.0)) for _ in range(3)))
        assert second == ["w-1/0", "w-2/0", "w-0/0"]

    run_in_virtual_time(main())


def test_more_tasks_than_workers_wait_their_turn() -> None:
    async def main() -> None:
        pool = Shop(count=2).open()
        answers = await asyncio.gather(*(pool.call(sleeps(1.0)) for _ in range(5)))
        assert answers == ["w-0/0", "w-1/0", "w-0/0", "w-1/0", "w-0/0"]
        assert now() == 3.0

    run_in_virtual_time(main())


def test_the_task_of_a_lost_worker_goes_to_another_immediately() -> None:
    async def main() -> None:
        shop = Shop(count=2)
        pool = shop.open()
        assert await pool.call(dies_on("w-0")) == "w-1/0"
        assert now() == 2.0
        assert shop.lost == ["w-0"]
        assert pool.restarts == 1
        await pool.close()

    run_in_virtual_time(main())


def test_a_lost_worker_is_replaced() -> None:
    async def main() -> None:
        pool = Shop(count=1, restart_seconds=5.0).open()
        assert await pool.call(dies_on("w-0")) == "w-0/1"
        assert now() == 1.0 + 5.0 + 1.0

    run_in_virtual_time(main())


def test_a_replacement_that_is_lost_is_replaced_too() -> None:
    async def main() -> None:
        shop = Shop(count=1, restart_errors=[WorkerLostError("w-0", "died while starting")])
        pool = shop.open()
        assert await pool.call(dies_on("w-0")) == "w-0/1"
        assert now() == 1.0 + 5.0 + 5.0 + 1.0
        assert pool.restarts == 2
        assert shop.lost == ["w-0", "w-0"]

    run_in_virtual_time(main())


def test_the_budget_is_for_the_life_of_the_pool() -> None:
    async def main() -> None:
        shop = Shop(count=3, max_restarts=2)
        pool = shop.open()
        with pytest.raises(FailureBudgetExceededError) as caught:
            await pool.call(dies_on("w-0", "w-1", "w-2"))
        assert (caught.value.count, caught.value.budget) == (3, 2)
        assert caught.value.last == "w-2 was lost: died"
        assert isinstance(caught.value.__cause__, WorkerLostError)
        assert shop.lost == ["w-0", "w-1", "w-2"]
        await pool.close()

    run_in_virtual_time(main())


def test_waiting_callers_get_an_error_when_the_budget_is_exceeded() -> None:
    async def main() -> None:
        pool = Shop(count=1, max_restarts=0).open()
        dying = asyncio.ensure_future(pool.call(dies_on("w-0")))
        await asyncio.sleep(NO_TIME)
        waiting = [asyncio.ensure_future(pool.call(sleeps(1.0))) for _ in range(3)]
        for task in (dying, *waiting):
            with pytest.raises(FailureBudgetExceededError):
                await task
        with pytest.raises(FailureBudgetExceededError):
            await pool.call(sleeps(1.0))

    run_in_virtual_time(main())


@pytest.mark.parametrize(
    "error", [WorkerLostError("w-0", "died while starting"), ValueError("no such image")], ids=repr
)
def test_errors_of_a_replacement_reach_waiting_callers(error: Exception) -> None:
    async def main() -> None:
        pool = Shop(count=1, max_restarts=1, restart_errors=[error]).open()
        with pytest.raises((FailureBudgetExceededError, ValueError)):
            await pool.call(dies_on("w-0"))
        assert now() == 6.0

    run_in_virtual_time(main())


def test_a_failed_replacement_without_waiting_callers() -> None:
    async def main() -> None:
        pool = Shop(count=2, restart_errors=[ValueError("no such image")]).open()
        assert await pool.call(dies_on("w-0")) == "w-1/0"
        await asyncio.sleep(100)
        with pytest.raises(ValueError, match="no such image"):
            await pool.call(sleeps(1.0))

    run_in_virtual_time(main())


def test_an_error_of_a_task_reaches_its_caller_and_the_worker_stays() -> None:
    async def main() -> None:
        shop = Shop(count=1)
        pool = shop.open()
        with pytest.raises(ValueError, match="a bug"):
            await pool.call(dies_on("w-0", error=ValueError("a bug")))
        assert await pool.call(sleeps(1.0)) == "w-0/0"
        assert shop.lost == []

    run_in_virtual_time(main())


def test_lost_data_does_not_count_as_a_lost_worker() -> None:
    async def main() -> None:
        shop = Shop(count=1, max_restarts=0)
        pool = shop.open()
        with pytest.raises(DataLostError):
            await pool.call(dies_on("w-0", error=DataLostError("w-0", "the block is gone")))
        assert await pool.call(sleeps(1.0)) == "w-0/0"
        assert shop.lost == []

    run_in_virtual_time(main())


def test_a_cancelled_task_gives_its_worker_back() -> None:
    async def main() -> None:
        pool = Shop(count=1).open()
        task = asyncio.ensure_future(pool.call(sleeps(100.0)))
        await asyncio.sleep(1.0)
        task.cancel()
        assert await pool.call(sleeps(1.0)) == "w-0/0"
        assert now() == 2.0

    run_in_virtual_time(main())


@pytest.mark.parametrize("steps", range(6))
def test_a_caller_that_is_cancelled_while_it_waits_loses_no_worker(steps: int) -> None:
    """At every point between a worker becoming free and the waiting caller taking it."""

    async def main() -> None:
        pool = Shop(count=1).open()
        holding = asyncio.Event()

        async def hold(_: Worker) -> None:
            await holding.wait()

        first = asyncio.ensure_future(pool.call(hold))
        await asyncio.sleep(1.0)
        waiting = asyncio.ensure_future(pool.call(sleeps(0.0)))
        await asyncio.sleep(1.0)
        holding.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(first, waiting, return_exceptions=True)
        assert await pool.call(sleeps(0.0)) == "w-0/0"

    run_in_virtual_time(main())


def test_hundreds_of_callers_cancelled_at_random_lose_no_worker() -> None:
    async def main() -> None:
        pool = Shop(count=3, max_restarts=10_000, restart_seconds=0.7).open()
        calls = [
            asyncio.ensure_future(pool.call(dies_on("w-1") if index % 7 == 0 else sleeps(index % 5 * 0.3)))
            for index in range(300)
        ]
        for index, call in enumerate(calls):
            asyncio.get_running_loop().call_later(index * 37 % 101 * 0.05, call.cancel)
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(10.0)
        start = now()
        names = await asyncio.gather(*(pool.call(sleeps(1.0)) for _ in range(3)))
        assert {name.partition("/")[0] for name in names} == {"w-0", "w-1", "w-2"}
        assert now() == start + 1.0

    run_in_virtual_time(main())


def test_a_closed_pool_restarts_no_worker() -> None:
    async def main() -> None:
        pool = Shop(count=2, restart_seconds=50.0).open()
        await pool.call(dies_on("w-0"))
        await pool.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert now() == 2.0

    run_in_virtual_time(main())


def test_a_pool_without_workers_waits_forever() -> None:
    async def main() -> None:
        await Shop(count=0).open().call(sleeps(1.0))

    with pytest.raises(DeadlockError):
        run_in_virtual_time(main())


def ready_unless(*lost: str, error: Exception | None = None) -> Callable[[Worker], Awaitable[None]]:
    async def ready(worker: Worker) -> None:
        await asyncio.sleep(1.0)
        if worker.name in lost:
            raise error or WorkerLostError(worker.name, "died while it was starting")

    return ready


def test_a_worker_lost_at_the_start_is_replaced_within_the_budget() -> None:
    async def main() -> None:
        shop = Shop(count=2, max_restarts=2, restart_errors=[WorkerLostError("w-1", "died again")])
        pool = shop.open()
        await pool.start(ready_unless("w-1"))
        assert (shop.lost, pool.restarts) == (["w-1", "w-1"], 2)
        assert now() == 11.0  # the first attempt, a replacement that died, and one that did not
        assert await asyncio.gather(*(pool.call(sleeps(1.0)) for _ in range(2))) == ["w-0/0", "w-1/1"]

    run_in_virtual_time(main())


def test_too_many_losses_at_the_start_raise_an_error() -> None:
    async def main() -> None:
        pool = Shop(count=3, max_restarts=1).open()
        with pytest.raises(FailureBudgetExceededError, match="2 failures exceed the budget of 1"):
            await pool.start(ready_unless("w-0", "w-2"))
        assert now() == 1.0

    run_in_virtual_time(main())


def test_errors_while_building_a_worker_are_passed_on() -> None:
    async def main() -> None:
        refused = ValueError("no such engine")
        with pytest.raises(ValueError, match="no such engine") as caught:
            await Shop().open().start(ready_unless("w-1", error=refused))
        assert caught.value is refused

    run_in_virtual_time(main())


def test_a_worker_that_several_tasks_lose_at_once_counts_once() -> None:
    async def main() -> None:
        shop = Shop(count=1, max_restarts=1)
        pool = WorkerPool([Worker("w-0")], shop._replace, 1, lambda lost: shop.lost.append(lost.worker), 3)  # pyright: ignore[reportPrivateUsage]
        answers = await asyncio.gather(*(pool.call(dies_on("w-0")) for _ in range(3)))
        assert answers == ["w-0/1"] * 3
        assert (shop.lost, pool.restarts) == (["w-0"], 1)
        assert now() == 1.0 + 5.0 + 1.0

    run_in_virtual_time(main())


def test_a_loan_of_a_lost_worker_gives_its_successor_no_capacity() -> None:
    async def main() -> None:
        pool = Shop(count=1).open()
        async with pool.borrow(2) as loan:
            raise WorkerLostError("w-0", "died")
        assert loan.is_lost
        async with pool.borrow(2) as fresh:
            loan.give_back(2)
            waiting = asyncio.ensure_future(pool.call(sleeps(0.0)))
            await asyncio.sleep(1.0)
            assert not waiting.done() and fresh.worker.life == 1
        assert await waiting == "w-0/1"

    run_in_virtual_time(main())


def test_a_worker_gets_tasks_until_its_capacity_is_used_and_the_least_loaded_first() -> None:
    async def main() -> None:
        pool = WorkerPool([Worker("w-0"), Worker("w-1")], Shop()._replace, 0, lambda lost: None, 4)  # pyright: ignore[reportPrivateUsage]
        async with pool.borrow(3) as first, pool.borrow(2) as second, pool.borrow(3) as third:
            assert [loan.worker.name for loan in (first, second, third)] == ["w-0", "w-1", "w-1"]
            async with pool.borrow(1) as fourth:  # 3 of 4 used, so one more task, whatever its size
                assert fourth.worker.name == "w-0"
                waiting = asyncio.ensure_future(pool.call(sleeps(0.0)))
                await asyncio.sleep(1.0)
                assert not waiting.done()
                third.give_back(2)
                assert await waiting == "w-1/0"

    run_in_virtual_time(main())


def test_a_hosted_worker_runs_tasks_and_completes_them_before_it_leaves() -> None:
    async def main() -> None:
        pool = Shop(count=1).open()
        leave = asyncio.Event()
        hosting = asyncio.ensure_future(pool.host(Worker("w-1"), leave))
        await asyncio.sleep(NO_TIME)
        assert pool.width == 2
        first = [asyncio.ensure_future(pool.call(sleeps(10.0))) for _ in range(2)]
        await asyncio.sleep(1.0)
        leave.set()
        await asyncio.sleep(NO_TIME)
        assert (pool.width, [worker.name for worker in pool.ready()]) == (1, ["w-0", "w-1"])
        later = asyncio.ensure_future(pool.call(sleeps(1.0)))
        await hosting
        assert now() == pytest.approx(10.0)
        assert await asyncio.gather(*first, later) == ["w-0/0", "w-1/0", "w-0/0"]
        assert [worker.name for worker in pool.ready()] == ["w-0"]

    run_in_virtual_time(main())


def test_a_task_that_waits_gets_a_worker_that_joins() -> None:
    async def main() -> None:
        pool = Shop(count=0).open()
        waiting = asyncio.ensure_future(pool.call(sleeps(1.0)))
        await asyncio.sleep(5.0)
        hosting = asyncio.ensure_future(pool.host(Worker("w-0"), asyncio.Event()))
        assert await waiting == "w-0/0"
        assert now() == 6.0
        hosting.cancel()

    run_in_virtual_time(main())


@pytest.mark.parametrize("leaving", [False, True])
def test_a_hosted_worker_that_is_lost_is_not_replaced(leaving: bool) -> None:
    async def main() -> None:
        shop = Shop(count=1, max_restarts=0)
        pool = shop.open()
        leave = asyncio.Event()
        hosting = asyncio.ensure_future(pool.host(Worker("w-1"), leave))
        await asyncio.sleep(NO_TIME)
        busy = asyncio.ensure_future(pool.call(sleeps(3.0)))
        dying = asyncio.ensure_future(pool.call(dies_on("w-1")))
        await asyncio.sleep(NO_TIME)
        if leaving:
            leave.set()
        with pytest.raises(WorkerLostError, match="w-1 was lost: died"):
            await hosting
        assert now() == pytest.approx(1.0)
        assert (shop.lost, pool.restarts, pool.width) == (["w-1"], 0, 1)
        assert (await busy, await dying) == ("w-0/0", "w-0/0")

    run_in_virtual_time(main())


def test_a_hosted_worker_can_be_reported_lost_without_a_task() -> None:
    async def main() -> None:
        shop = Shop(count=1)
        pool = shop.open()
        guest = Worker("w-1")
        hosting = asyncio.ensure_future(pool.host(guest, asyncio.Event()))
        await asyncio.sleep(1.0)
        pool.report_lost(guest, WorkerLostError("w-1", "its node died", node_died=True))
        pool.report_lost(guest, WorkerLostError("w-1", "its node died", node_died=True))
        with pytest.raises(WorkerLostError) as caught:
            await hosting
        assert caught.value.node_died
        assert (shop.lost, pool.width) == (["w-1"], 1)
        pool.report_lost(pool.ready()[0], WorkerLostError("w-0", "not a hosted one"))
        assert (shop.lost, pool.width) == (["w-1"], 1)

    run_in_virtual_time(main())


def test_the_tasks_of_a_worker_that_leaves_at_once_go_to_others_without_counting_a_loss() -> None:
    async def main() -> None:
        shop = Shop(count=1, max_restarts=0)
        pool = shop.open()
        hosting = asyncio.ensure_future(pool.host(Worker("w-1"), asyncio.Event()))
        await asyncio.sleep(NO_TIME)
        busy = asyncio.ensure_future(pool.call(sleeps(0.5)))
        dying = asyncio.ensure_future(pool.call(dies_on("w-1")))
        await asyncio.sleep(0.2)
        hosting.cancel()
        assert (await busy, await dying) == ("w-0/0", "w-0/0")
        assert (shop.lost, pool.restarts, now()) == ([], 0, pytest.approx(2.0))

    run_in_virtual_time(main())
