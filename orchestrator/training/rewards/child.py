"""The process in which scorers run: `python -m orchestrator.training.rewards.child FD`.

FD is one end of a socket pair. Messages are JSON, so that nothing that a scorer makes of a model's text is
unpickled by the parent.

    parent: {"scorers": {name: key}, "memory_bytes": n}      child: {} or {"error": [value, hint]} where a
    scorer can't be loaded parent: {"prompts": [...], "rollouts": [...]}            child: {} once prepared,
    then an outcome for each rollout as soon as it is known

It ends when the parent does: a thread waits for the other end of the socket to close.
"""

from __future__ import annotations

import json
import os
import resource
import select
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection

from orchestrator.errors import ConfigError
from orchestrator.training.records import Finish, Prompt
from orchestrator.training.rewards.completion import Completion, PreparedScorer, Scorer
from orchestrator.training.rewards.rubric import apply_scorers
from orchestrator.training.rewards.scorers import load_scorer


def main(fd: int) -> None:
    """Serve until the parent closes its end."""
    # A print of a scorer is a log line, not output of the program.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    threading.Thread(target=_end_with_parent, args=(fd,), daemon=True).start()
    parent = Connection(fd)
    try:
        scorers = _load(parent)
        while scorers:
            _serve(parent, scorers)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _load(parent: Connection) -> dict[str, Scorer]:
    """The scorers by name; none if one can't be loaded."""
    request = json.loads(parent.recv_bytes())
    if request["memory_bytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["memory_bytes"], request["memory_bytes"]))
    try:
        scorers = {name: load_scorer(key) for name, key in request["scorers"].items()}
    except ConfigError as error:
        _send(parent, {"error": error.args})
        return {}
    _send(parent, {})
    return scorers


def _serve(parent: Connection, scorers: Mapping[str, Scorer]) -> None:
    request = json.loads(parent.recv_bytes())
    prompts = [Prompt(*fields) for fields in request["prompts"]]
    for scorer in scorers.values():
        if isinstance(scorer, PreparedScorer):
            scorer.prepare([prompt.reference for prompt in prompts])
    _send(parent, {})
    for prompt, text, length, finish in request["rollouts"]:
        completion = Completion(prompts[prompt], text, length, Finish(finish), request["max_new_tokens"])
        outcome = apply_scorers(scorers, completion)
        _send(parent, [outcome.grade, outcome.components, outcome.reason])


def _send(parent: Connection, message: object) -> None:
    parent.send_bytes(json.dumps(message).encode())


def _end_with_parent(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # no event is asked for: only a hang-up is reported
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
