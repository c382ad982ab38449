"""Finds the dashboard of a Ray cluster."""

from __future__ import annotations

from orchestrator.errors import ConfigError
from orchestrator.training.cluster.authentication import use_token


def dashboard_url(address: str) -> str:
    """The URL of the dashboard of the cluster at `address`, which is `auto`, `HOST:PORT`, `ray://HOST:PORT`,
    or already the dashboard's URL.

    Raises ConfigError if there is no such cluster.
    """
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    use_token()
    from ray.dashboard.utils import get_address_for_submission_client

    try:
        return get_address_for_submission_client(address)
    except Exception as error:  # Ray's layers raise many different classes here
        allowed = "auto, HOST:PORT, ray://HOST:PORT, or http://HOST:PORT of its dashboard"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError("--address", address, allowed, reason) from error
