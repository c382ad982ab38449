"""The contract of trackers on the fakes. tests/integration/test_mlflow.py runs the same suite on MLflow."""

from pathlib import Path

import pytest

from orchestrator.clock import FakeClock
from orchestrator.training.telemetry.background import BackgroundTracker
from orchestrator.training.telemetry.config import DeliveryConfig
from orchestrator.training.telemetry.tracker import MemoryTracker
from tests.contracts.tracker_contract import TrackerContract, TrackerUnderTest


class MemoryUnderTest(TrackerUnderTest):
    """The in-memory tracker keeps its data when it is started again, like a server."""

    def __init__(self, background: bool) -> None:
        self.memory = MemoryTracker(FakeClock(1_000))
        self._background = background

    def new(self) -> MemoryTracker | BackgroundTracker:
        if not self._background:
            return self.memory
        delivery = DeliveryConfig(
            interval_seconds=0,
            capacity=100,
            first_retry_seconds=0.01,
            max_retry_seconds=0.01,
            finish_seconds=60,
        )
        return BackgroundTracker(lambda: self.memory, delivery, FakeClock(1_000))

    def history(self, name: str) -> list[tuple[int, float]]:
        return self.memory.history.get(name, [])

    def params(self) -> dict[str, str]:
        return self.memory.params

    def tags(self) -> dict[str, str]:
        return self.memory.tags

    def artifacts(self) -> dict[str, bytes]:
        return self.memory.artifacts

    def rollouts(self, step: int) -> list[dict[str, object]]:
        return self.memory.rollouts[step]

    def outcome(self) -> str | None:
        return self.memory.outcome


@pytest.mark.parametrize("background", [False, True], ids=["memory", "background"])
class TestTrackers(TrackerContract):
    @pytest.fixture
    def under_test(self, background: bool, tmp_path: Path) -> TrackerUnderTest:
        return MemoryUnderTest(background)
