"""Posts notifications to a webhook, for example when a budget crosses a threshold."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import urllib.request
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0


def post(url: str, message: Mapping[str, Any]) -> None:
    """POST `message` as JSON and wait for the answer.

    Raises OSError, which does not contain the URL, if there is none or it is an error.
    """
    body = json.dumps(message).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()
    except (
        http.client.HTTPException,
        UnicodeError,
    ) as error:  # their messages may contain the path, which is secret
        raise OSError(f"invalid URL or no HTTP server: {type(error).__name__}") from None


def post_aside(url: str, message: Mapping[str, Any]) -> threading.Thread:
    """POST in a separate thread, so that the caller never waits. A failure is only logged.

    The program ends after the answer, or after TIMEOUT_SECONDS.
    """

    def work() -> None:
        try:
            post(url, message)
        except OSError as error:
            logger.warning("cannot reach the webhook: %s", error)

    thread = threading.Thread(target=work, name="webhook")
    thread.start()
    return thread
