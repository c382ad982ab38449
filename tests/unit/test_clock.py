import time

import pytest

from orchestrator.clock import NANOSECONDS, FakeClock, SystemClock


def test_a_fake_clock_only_moves_when_advanced() -> None:
    clock = FakeClock(5)
    assert clock.now_ns() == clock.now_ns() == 5
    clock.advance(NANOSECONDS)
    assert clock.now_ns() == 1_000_000_005


def test_a_fake_clock_does_not_go_back() -> None:
    clock = FakeClock(5)
    with pytest.raises(ValueError, match="got -1 ns"):
        clock.advance(-1)
    assert clock.now_ns() == 5


def test_the_system_clock_does_not_follow_a_step_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 400)
    clock = SystemClock()
    assert clock.now_ns() == 1_000_000
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 450)
    assert clock.now_ns() == 1_000_050


def test_the_system_clock_gives_nanoseconds_since_the_epoch() -> None:
    before, now, after = time.time_ns(), SystemClock().now_ns(), time.time_ns()
    assert before - NANOSECONDS <= now <= after + NANOSECONDS
