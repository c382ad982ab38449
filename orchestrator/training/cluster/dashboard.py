"""Where the dashboard of a Ray cluster answers."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.errors import ConfigError


def dashboard_url(address: str) -> str:
    """The URL of the dashboard of the cluster at `address`: itself, if it is one; else as `auto`, `HOST:PORT`
    or `ray://HOST:PORT` lead to it.

    Raises ConfigError if there is no such cluster.
    """
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    if os.environ.get("RAY_AUTH_TOKEN") or _token_file().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray ignores the token that the cluster wants
    from ray.dashboard.utils import get_address_for_submission_client

    try:
        return get_address_for_submission_client(address)
    except Exception as error:  # Ray raises whatever its layers raise
        allowed = "auto, HOST:PORT, ray://HOST:PORT, or http://HOST:PORT of its dashboard"
        raise ConfigError("--address", address, allowed, str(error).splitlines()[0]) from error


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
