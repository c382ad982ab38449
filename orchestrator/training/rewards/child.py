"""The child process in which scorers run: `python -m orchestrator.training.rewards.child FD`.

FD is the child's end of a `Channel` to the parent.

    message from the parent                                 reply
    {"load": {"scorers": {name: key}, ...}}                 {"loaded": {"asynchronous": bool, ...}}
                                                            or {"error": [key, value, allowed, hint]}
    {"block": {"prompts": [...], "max_new_tokens": n}}      {"prepared": true}
    {"score": unit, "rollouts": [...]}                      {"scored": unit, "outcomes": [...]}
    {"vote": unit, "prompt": index, "answers": [...]}       {"voted": unit, "answers": [...]}

A unit is a number chosen by the parent. Asynchronous scorers work on several units at once, other scorers on
one at a time. Printed output goes to the log, never to the channel.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError
from orchestrator.sandbox.channel import Channel
from orchestrator.training.records import Finish, Prompt
from orchestrator.training.rewards.checkers import votes
from orchestrator.training.rewards.completion import Completion
from orchestrator.training.rewards.scorers import load_scorer
from orchestrator.training.rewards.scoring import Outcome, ScorerSet

if TYPE_CHECKING:
    import asyncio

Message = Mapping[str, Any]


def main(fd: int) -> None:
    """Serve requests until the parent closes its end of the channel."""
    sys.stdout = sys.stderr  # output printed by scorers goes to the log
    os.dup2(sys.stderr.fileno(), 1)
    # Before it kills a hanging scorer, the parent requests the stack with this signal.
    faulthandler.register(signal.SIGUSR1)
    parent = Channel(socket.socket(fileno=fd))
    try:
        server = _load(parent)
        if server is not None:
            server.serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _load(parent: Channel) -> _Server | None:
    """Load the scorers and report to the parent. Returns None if a scorer cannot be loaded."""
    orders = parent.receive()["load"]
    try:
        scorers = {name: load_scorer(key) for name, key in orders["scorers"].items()}
    except ConfigError as error:
        parent.send({"error": list(error.args)})
        return None
    loaded = ScorerSet(scorers, orders["timeout_seconds"])
    parent.send({"loaded": {"asynchronous": loaded.asynchronous, "batched": loaded.batched}})
    return _Server(parent, loaded, orders)


class _Server:
    def __init__(self, parent: Channel, scorers: ScorerSet, orders: Message) -> None:
        self._parent, self._scorers = parent, scorers
        self._formats = tuple(orders["answer_formats"])
        self._prompts: list[Prompt] = []
        self._max_new_tokens = 0

    def serve(self) -> None:
        if self._scorers.asynchronous:
            import asyncio

            asyncio.run(self._serve_asynchronously())
        while True:
            message = self._parent.receive()
            if "score" in message:
                self._answer(message, self._scorers.score_now(self._completions(message)))
            else:
                self._handle(message)

    async def _serve_asynchronously(self) -> None:
        import asyncio

        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        threading.Thread(
            target=self._receive, args=(asyncio.get_running_loop(), messages), daemon=True
        ).start()
        tasks: set[asyncio.Task[None]] = set()
        while (message := await messages.get()) is not None:
            if "score" in message:
                task = asyncio.create_task(self._score(message))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                self._handle(message)
        os._exit(0)  # does not wait for scorers that are still running

    def _receive(self, loop: asyncio.AbstractEventLoop, messages: asyncio.Queue[Message | None]) -> None:
        message: Message | None = {}
        while message is not None:
            try:
                message = self._parent.receive()
            except (EOFError, OSError):
                message = None
            loop.call_soon_threadsafe(messages.put_nowait, message)

    async def _score(self, message: Message) -> None:
        self._answer(message, await self._scorers.score(self._completions(message)))

    def _handle(self, message: Message) -> None:
        if "block" in message:
            block = message["block"]
            self._prompts = [
                Prompt(prompt_id, text, reference, columns=columns)
                for prompt_id, text, reference, columns in block["prompts"]
            ]
            self._max_new_tokens = block["max_new_tokens"]
            self._scorers.prepare([prompt.reference for prompt in self._prompts])
            self._parent.send({"prepared": True})
        else:
            reference = self._prompts[message["prompt"]].reference
            self._parent.send({"voted": message["vote"], "answers": votes(message["answers"], reference)})

    def _completions(self, message: Message) -> list[Completion]:
        return [
            Completion(
                self._prompts[prompt],
                text,
                length,
                Finish(finish),
                self._max_new_tokens,
                prefill,
                self._formats,
            )
            for prompt, text, length, finish, prefill in message["rollouts"]
        ]

    def _answer(self, message: Message, outcomes: list[Outcome]) -> None:
        rows = [[one.status, one.components, one.reason, one.traceback] for one in outcomes]
        self._parent.send({"scored": message["score"], "outcomes": rows})


if __name__ == "__main__":
    main(int(sys.argv[1]))
