"""The parent's side of the scorers' process: start it, feed it, kill it when it hangs, say how it died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError, WorkerLostError
from orchestrator.training.records import ScoreStatus
from orchestrator.training.rewards.completion import Completion
from orchestrator.training.rewards.rubric import Outcome

PREPARE_SECONDS = 120.0
"""How long a child may take to start, and to import what a block needs. Many times what a loaded machine
takes."""
_WHO = "the scorers' process"


class ScorerProcess:
    """One child at a time; after it was lost, the next call starts another. Not for use by several
    threads."""

    def __init__(self, scorers: Mapping[str, str], memory_bytes: int) -> None:
        self._hello = {"scorers": dict(scorers), "memory_bytes": memory_bytes}
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._ready = False
        self._start()

    @property
    def pid(self) -> int | None:
        """The child's process id; None if there is none now."""
        return None if self._child is None else self._child.pid

    def score(self, completions: Sequence[Completion], timeout_seconds: float) -> list[Outcome]:
        """Outcomes of the first rollouts: of all of them, or up to and including the one at which the child
        was lost.

        Raises ConfigError if a scorer can't be loaded, WorkerLostError if the child can't get ready.
        """
        pipe = self._submit(completions)
        outcomes: list[Outcome] = []
        try:
            while len(outcomes) < len(completions):
                if not pipe.poll(timeout_seconds):
                    self._kill()
                    outcomes.append(
                        Outcome(ScoreStatus.TIMEOUT, reason=f"no score within {timeout_seconds:g} s")
                    )
                    break
                grade, components, reason = json.loads(pipe.recv_bytes())
                outcomes.append(Outcome(ScoreStatus(grade), tuple(components), reason))
        except (EOFError, OSError):
            outcomes.append(Outcome(ScoreStatus.CRASHED, reason=f"the scorers' process {self._kill()}"))
        return outcomes

    def close(self) -> None:
        """End the child, at once."""
        if self._child is not None:
            self._kill()

    def _start(self) -> None:
        self._pipe, far_end = Pipe(duplex=True)
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.training.rewards.child", str(far_end.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[far_end.fileno()],
            env=threads | os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # so that what a scorer starts dies with it, and Ctrl-C reaches only us
        )
        far_end.close()
        self._ready = False

    def _get_ready(self) -> Connection:
        if self._child is None:
            self._start()
        assert self._pipe is not None
        if not self._ready:
            try:
                self._pipe.send_bytes(json.dumps(self._hello).encode())
                answer = self._expect(self._pipe, "while it started")
            except (EOFError, OSError) as error:
                raise WorkerLostError(_WHO, f"{self._kill()} while it started") from error
            if "error" in answer:
                self._kill()
                raise ConfigError(*answer["error"])
            self._ready = True
        return self._pipe

    def _submit(self, completions: Sequence[Completion]) -> Connection:
        """A child that is about to score these. One that died since the last call is no fault of theirs."""
        request = _request(completions)
        how = ""
        for _ in range(2):
            pipe = self._get_ready()
            try:
                pipe.send_bytes(request)
                self._expect(pipe, "while it prepared its scorers")
            except (EOFError, OSError):
                how = self._kill()
            else:
                return pipe
        raise WorkerLostError(_WHO, f"{how} while it prepared its scorers, twice")

    def _expect(self, pipe: Connection, when: str) -> dict[str, list[str]]:
        if not pipe.poll(PREPARE_SECONDS):
            self._kill()
            raise WorkerLostError(_WHO, f"silent for {PREPARE_SECONDS:g} s {when}")
        return json.loads(pipe.recv_bytes())

    def _kill(self) -> str:
        """Kill the child and all that it started; how it ended: its own way if it was dead already."""
        assert self._child is not None and self._pipe is not None
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        code = self._child.wait()
        self._pipe.close()
        self._child, self._pipe = None, None
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _request(completions: Sequence[Completion]) -> bytes:
    """Each prompt once, then the rollouts with their prompt's index."""
    prompts: dict[str, int] = {}
    rows: list[tuple[str, str, Mapping[str, Any]]] = []
    rollouts: list[tuple[int, str, int, int]] = []
    for completion in completions:
        prompt = completion.prompt
        if prompt.prompt_id not in prompts:
            prompts[prompt.prompt_id] = len(rows)
            rows.append((prompt.prompt_id, prompt.text, prompt.reference))
        rollouts.append(
            (prompts[prompt.prompt_id], completion.text, completion.length, int(completion.finish))
        )
    return json.dumps(
        {"prompts": rows, "rollouts": rollouts, "max_new_tokens": completions[0].max_new_tokens}
    ).encode()
