"""Yields prompts in a seeded order, epoch after epoch. The position can be saved and restored."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.training.records import Prompt


class WriteSolution(Protocol):
    """Writes the worked solution of a training prompt for an epoch, as a pure function of both."""

    def __call__(self, prompt_id: str, epoch: int) -> str: ...


class EpochPrompts:
    """Yields every training prompt once per epoch. The order of an epoch is a pure function of (seed, epoch).

    With `write`, the prompts get new worked solutions in each epoch. A cold start of many epochs on a single
    solution per prompt would memorise it, including its random choices.

    There is no separate fake of this class: tests construct it from their own prompts.
    """

    def __init__(
        self,
        train: Sequence[Prompt],
        heldout: Sequence[Prompt],
        seed: int,
        write: WriteSolution | None = None,
    ) -> None:
        if not train:
            raise ValueError("no training prompts")
        self._write = write
        self._train, self._heldout, self._seed = tuple(train), tuple(heldout), seed
        self._rows = {prompt.prompt_id: row for row, prompt in enumerate(self._train)}
        self._by_id = {prompt.prompt_id: prompt for prompt in (*self._train, *self._heldout)}
        if len(self._by_id) != len(self._train) + len(self._heldout):
            raise ValueError("two prompts share an id")
        self._epoch, self._position = 0, 0
        self._order = epoch_order(seed, 0, len(self._train))

    def __len__(self) -> int:
        """The number of training prompts, which is the length of an epoch."""
        return len(self._train)

    @property
    def all_prompts(self) -> list[Prompt]:
        """All prompts, training first, then held-out, without the solutions of `write`."""
        return [*self._train, *self._heldout]

    @property
    def first_epoch(self) -> list[Prompt]:
        """The training prompts with the solutions of their first epoch."""
        return [self._worked(prompt, 0) for prompt in self._train]

    def take(self, count: int) -> list[Prompt]:
        """Return the next `count` training prompts. The next epoch begins when one is exhausted."""
        taken: list[Prompt] = []
        while len(taken) < count:
            if self._position == len(self._train):
                self._move_to(self._epoch + 1, 0)
            until = min(self._position + count - len(taken), len(self._train))
            rows = self._order[self._position : until]
            taken.extend(self._worked(self._train[row], self._epoch) for row in rows)
            self._position = until
        return taken

    def heldout(self, count: int) -> list[Prompt]:
        """Return the first `count` held-out prompts, which are always the same. `take` never returns them.

        Raises ConfigError if there are fewer.
        """
        if count > len(self._heldout):
            raise ConfigError(
                "evaluation.prompts", str(count), f"at most task.heldout_size, {len(self._heldout)}"
            )
        return list(self._heldout[:count])

    def get(self, prompt_id: str) -> Prompt:
        """Return the prompt with that id, training or held-out, with the solution that it had when `take`
        last returned it. Raises CheckpointError if the task has no such prompt.
        """
        if prompt_id not in self._by_id:
            raise CheckpointError(
                f"no prompt {prompt_id!r}: the task's data has changed since the run started"
            )
        prompt = self._by_id[prompt_id]
        if self._write is None or prompt_id not in self._rows:
            return prompt
        handed_out = self._rows[prompt_id] in self._order[: self._position]
        return self._worked(prompt, self._epoch if handed_out else max(self._epoch - 1, 0))

    def _worked(self, prompt: Prompt, epoch: int) -> Prompt:
        if self._write is None:
            return prompt
        return replace(prompt, solution=self._write(prompt.prompt_id, epoch))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the ids and texts of all prompts, which identifies the data in a manifest."""
        digest = hashlib.sha256()
        for prompt in (*self._train, *self._heldout):
            digest.update(f"{prompt.prompt_id}\0{prompt.text}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON. The prompts themselves are loaded from the config again."""
        return {"epoch": self._epoch, "position": self._position, "digest": self.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved position. Raises CheckpointError if the prompts have changed."""
        if state["digest"] != self.digest:
            raise CheckpointError(
                "the task's prompts have changed since the checkpoint: check its file, options and template"
            )
        self._move_to(int(state["epoch"]), int(state["position"]))

    def _move_to(self, epoch: int, position: int) -> None:
        if epoch != self._epoch:
            self._order = epoch_order(self._seed, epoch, len(self._train))
        self._epoch, self._position = epoch, position


def epoch_order(seed: int, epoch: int, size: int) -> list[int]:
    """Return a permutation of `range(size)`."""
    order = list(range(size))
    random.Random(f"prompts/{seed}/{epoch}").shuffle(order)
    return order
