import os

import pytest


@pytest.fixture(autouse=True)
def disk_that_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated machines never lose power, so waiting for the real disk would only
    double the time of these tests.
    """

    def synced(_: int) -> None:
        return None

    monkeypatch.setattr(os, "fsync", synced)
