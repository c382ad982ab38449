import os

import pytest


@pytest.fixture(autouse=True)
def disk_that_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No simulated machine loses power: waiting for the real disk would be half of this lane's time."""

    def synced(_: int) -> None:
        return None

    monkeypatch.setattr(os, "fsync", synced)
