"""The rollouts in progress: what each has sampled so far, and the random numbers for the rest."""

from __future__ import annotations

import numpy as np
import torch

from orchestrator.training.records import Finish, WeightVersion
from orchestrator.training.rollouts.engine import Response
from orchestrator.training.rollouts.engines.hf.rules import ChosenTokens


class RolloutTable:
    """A table with one row for each rollout in progress, on the CPU. Rows are reused, and the table grows
    with the longest response that was ever allowed.
    """

    def __init__(self, rows: int) -> None:
        self._free = list(range(rows))[::-1]
        self.tokens = torch.zeros(rows, 0, dtype=torch.int64)
        self.logprobs = torch.zeros(rows, 0)
        self.versions = torch.zeros(rows, 0, dtype=torch.int32)
        self.forced = torch.zeros(rows, 0, dtype=torch.bool)
        """Which tokens were forced instead of sampled."""
        self.draws = torch.zeros(rows, 0)
        self.lengths = torch.zeros(rows, dtype=torch.int64)
        """Tokens sampled so far, by row."""
        self.limits = torch.zeros(rows, dtype=torch.int64)
        """The most tokens of the response, by row."""
        self.stopped = torch.zeros(rows, dtype=torch.bool)
        self._routes: torch.Tensor | None = None  # [rows, columns, R, k] int16 once routes were recorded

    def start(self, draws: torch.Tensor) -> torch.Tensor:
        """Rows for new rollouts, [n]. `draws` [n, limit] holds the random number of each of their tokens."""
        count, limit = draws.shape
        self._widen(limit)
        rows = torch.tensor([self._free.pop() for _ in range(count)])
        self.draws[rows, :limit] = draws
        self.limits[rows] = limit
        self.lengths[rows] = 0
        self.stopped[rows] = False
        if self._routes is not None:
            self._routes[rows] = -1
        return rows

    def append(self, rows: torch.Tensor, chosen: ChosenTokens, version: WeightVersion) -> None:
        """Append one token to each rollout in `rows` [n]."""
        places = self.lengths[rows]
        self.tokens[rows, places] = chosen.tokens
        self.logprobs[rows, places] = chosen.logprobs
        self.forced[rows, places] = chosen.forced
        self.stopped[rows] = chosen.stopped
        self.versions[rows, places] = version
        self.lengths[rows] = places + 1

    def newest(self, rows: torch.Tensor) -> torch.Tensor:
        """The last token of each rollout, [n]."""
        return self.tokens[rows, self.lengths[rows] - 1]

    def note_routes(self, rows: torch.Tensor, routes: torch.Tensor) -> None:
        """Record the experts [n, R, k] to which the newest token of each rollout was sent."""
        if self._routes is None:
            self._routes = torch.full((*self.tokens.shape, *routes.shape[1:]), -1, dtype=torch.int16)
        self._routes[rows, self.lengths[rows] - 1] = routes

    def sampled(self, row: int) -> list[int]:
        """The tokens of the rollout in `row`."""
        return self.tokens[row, : self.lengths[row]].tolist()

    def finish(self, row: int, text: str, records_routes: bool) -> Response:
        """The response in `row`, whose tokens decode to `text`. The row becomes free."""
        taken = slice(int(self.lengths[row]))
        routes = self._routes[row, taken] if records_routes and self._routes is not None else None
        response = Response(
            tokens=self.tokens[row, taken].numpy().astype(np.int32),
            logprobs=self.logprobs[row, taken].numpy().copy(),
            versions=self.versions[row, taken].numpy().copy(),
            finish=Finish.STOP if self.stopped[row] else Finish.LENGTH,
            text=text,
            sampled=~self.forced[row, taken].numpy(),
            routes=None if routes is None else routes.numpy().copy(),
        )
        self.release(row)
        return response

    def release(self, row: int) -> None:
        """Free a row."""
        self._free.append(row)

    def _widen(self, columns: int) -> None:
        spare = columns - self.tokens.shape[1]
        if spare <= 0:
            return
        self.tokens, self.logprobs, self.versions, self.forced, self.draws = (
            torch.nn.functional.pad(each, (0, spare))
            for each in (self.tokens, self.logprobs, self.versions, self.forced, self.draws)
        )
        if self._routes is not None:
            self._routes = torch.nn.functional.pad(self._routes, (0, 0, 0, 0, 0, spare), value=-1)
