"""The environment variables that a process with foreign code gets."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from orchestrator.masking import mask

_SECRET = re.compile(
    r"(?:^|_)(?:API)?(?:KEYS?|SECRETS?|TOKENS?|PASS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|DSN|WEBHOOK|COOKIE)"
    r"(?:_|$)",
    re.IGNORECASE,
)


def without_secrets(environment: Mapping[str, str], keep: Collection[str] = ()) -> dict[str, str]:
    """The variables that do not look like secrets, and those named in `keep`.

    A secret is recognised by a word of its name (key, token, password, ...), or by a password inside a URL.

    >>> without_secrets({"AWS_SECRET_ACCESS_KEY": "x", "TOKENIZERS_PARALLELISM": "false", "PWD": "/"})
    {'TOKENIZERS_PARALLELISM': 'false', 'PWD': '/'}
    >>> without_secrets({"DATABASE_URL": "postgresql://ann:s3cret@db/x", "JUDGE_KEY": "k"}, ["JUDGE_KEY"])
    {'JUDGE_KEY': 'k'}
    """
    return {
        name: value
        for name, value in environment.items()
        if name in keep or not (_SECRET.search(name) or mask(value) != value)
    }
