from __future__ import annotations

import pytest
import ray.dashboard.utils

from orchestrator.errors import ConfigError
from orchestrator.training.cluster.dashboard import dashboard_url


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ConnectionError("no cluster\nat all"), "no cluster"), (TimeoutError(), "TimeoutError")],
)
def test_a_cluster_that_cannot_be_found_is_an_error_of_the_address(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_address: str) -> str:
        raise error

    monkeypatch.setattr(ray.dashboard.utils, "get_address_for_submission_client", fail)
    with pytest.raises(ConfigError, match=rf"--address: got auto, .*\({reason}\)"):
        dashboard_url("auto")
