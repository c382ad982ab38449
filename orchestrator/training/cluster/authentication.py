"""Ray's token authentication, for processes that connect to a running cluster.

`ray start` turns token authentication on if it finds a token. A driver that connects does not, even as the
same user on the same machine, so this module does it. The token authenticates; it does not encrypt.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def token_source() -> str | None:
    """Where Ray will find a token: the name of a variable or the path of a file; None if there is none."""
    if os.environ.get(TOKEN):
        return TOKEN
    path = Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    return str(path) if path.is_file() else None


def use_token() -> None:
    """Authenticate with the available token, unless there is none or RAY_AUTH_MODE is set. A cluster without
    authentication accepts a driver that has a token.
    """
    if os.environ.get(MODE) is not None or token_source() is None:
        return
    from ray._private.authentication import authentication_token_setup

    # Ray's own function: setting the variable is not enough once Ray has been imported.
    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)
    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def connection_hint() -> str:
    """What to check about authentication after a connection failed."""
    mode, source = os.environ.get(MODE), token_source()
    if mode is not None and mode.lower() != "token":
        return f"If the cluster uses token authentication (the default of `ray start`), unset {MODE}={mode}."
    if source is None:
        return (
            "If the cluster uses token authentication (the default of `ray start`), copy ~/.ray/auth_token"
            f" from its head node to this machine, or set {TOKEN_PATH} to a copy of that file."
        )
    return (
        f"The token from {source} was used; if the cluster has another one, set {TOKEN_PATH} to a copy of its"
        " ~/.ray/auth_token."
    )
