"""Tells a URL of what a person should know: a budget's threshold was crossed."""

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
    """POST `message` as JSON and wait for the answer. Raises OSError, which does not name the URL, if there
    is no good one.
    """
    body = json.dumps(message).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()
    except (http.client.HTTPException, UnicodeError) as error:  # their texts may quote the path, a secret
        raise OSError(f"no URL that can be asked, or no HTTP: {type(error).__name__}") from None


def post_aside(url: str, message: Mapping[str, Any]) -> threading.Thread:
    """POST on a thread of its own: who calls never waits, and a webhook that fails is only warned of. The
    program ends after the answer, or TIMEOUT_SECONDS.
    """

    def work() -> None:
        try:
            post(url, message)
        except OSError as error:
            logger.warning("the webhook did not answer: %s", error)

    thread = threading.Thread(target=work, name="webhook")
    thread.start()
    return thread
