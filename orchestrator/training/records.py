"""The nouns that travel along the flow: prompts -> rollouts -> rewards -> advantages -> learner -> weights.

Tokens travel as columns (`RolloutBlock`), in the object store, from the worker that sampled them to the rank
that trains on them. The controller never opens a block: it holds an opaque handle and a `GroupTicket` for
each group, so its work a step does not grow with tokens.

A worked example, used all through the docstrings below: two prompts (P = 2), two rollouts each
(G = 2, N = 4):

    prompt 0 "1+2="  -> "3."  "4."          prompt 1 "5-5="  -> "0."  "10."

    lengths          2  2  2  3             tokens in all: T = 9
    offsets       0  2  4  6  9             rollout i owns tokens[offsets[i]:offsets[i + 1]]
    rewards          1  0  1  0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, NewType

import numpy as np
from numpy.typing import NDArray

WeightVersion = int
"""Rises by one at each publish; 0 is the model that the run started from."""

BlockRef = NewType("BlockRef", object)
"""An opaque handle of a `RolloutBlock`: an `ObjectRef` on a cluster, a plain object in a simulation. Only the
stages that made it open it."""

ScoreRef = NewType("ScoreRef", object)
"""An opaque handle of a `ScoreBlock`."""

RecordKind = Literal["step", "heldout"]
"""Which rollouts are recorded: `step`, those that a learner step trained on; `heldout`, those
of an evaluation.
"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question and what its scorers need to judge an answer.

    `prompt_id` is its permanent name: `<task>/<split>/<index>`, e.g. `countdown/train/17`. `reference` is
    plain JSON: what the scorer needs (`{"target": 7, "numbers": [3, 6, 2]}`). `solution` is a worked solution
    where the task has one: what a cold start imitates; empty otherwise. `columns` are the other columns of
    the row that the question comes from, as plain JSON, for scorers of one's own (`{"level": "Level 2"}`).
    """

    prompt_id: str
    text: str
    reference: Mapping[str, Any]
    solution: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is sampled. `temperature` 0 is greedy; `top_p` 1 keeps the whole distribution;
    `max_new_tokens` counts response tokens, the end-of-sequence token among them. With the same weights
    and `seed`, an engine whose seeds are repeatable (`EngineFacts.repeatable_seeds`) gives a rollout the same
    tokens for its group id and index, whichever worker runs it and whatever else is in the request.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


class Finish(IntEnum):
    """Why a rollout ended."""

    STOP = 0
    """The model ended it (end of sequence)."""
    LENGTH = 1
    """It reached `max_new_tokens`: truncated."""


@dataclass(frozen=True, slots=True)
class RolloutBlock:
    """P groups of G rollouts, as columns. Rollout `i` belongs to prompt `i // group_size`.

    Shapes: P prompts, N = P * G rollouts, T response tokens in all, Q prompt tokens in all.

    `logprobs` are natural logs of the probabilities under the distribution that was sampled from (after
    temperature, before top-p truncation), one for each response token. `versions` are the weight versions
    that each token was sampled with. `trainable` is False for tokens that the model did not choose (an
    environment's observation).
    """

    group_ids: NDArray[np.int64]  # [P]
    group_size: int
    prompts: tuple[Prompt, ...]  # P
    prompt_tokens: NDArray[np.int32]  # [Q]
    prompt_offsets: NDArray[np.int64]  # [P + 1]
    tokens: NDArray[np.int32]  # [T]
    offsets: NDArray[np.int64]  # [N + 1]
    logprobs: NDArray[np.float32]  # [T]
    versions: NDArray[np.int32]  # [T]
    trainable: NDArray[np.bool_]  # [T]
    finish: NDArray[np.uint8]  # [N] of Finish
    texts: tuple[str, ...]  # N decoded responses, without the tokens that end them
    prompt_routes: NDArray[np.int16] | None = None  # [Q, R, k]
    routes: NDArray[np.int16] | None = None  # [T, R, k]
    """Which k experts each of the R routers chose for a token, where the engine recorded it; -1 for a token
    that the model never read (the last one of a rollout)."""
    prefills: tuple[str, ...] = ()
    """P beginnings of answers that the prompts already contain, such as `<think>` in some chat templates;
    empty if no prompt does. The model continues from there: its whole answer is the prefill and the text."""
    limits: NDArray[np.int32] | None = None  # [P]
    """The most tokens that a response to each prompt could have: `max_new_tokens`, or fewer where the context
    is full earlier. None: `max_new_tokens` for every prompt."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Response tokens of each rollout, [N]. The module's example: [2, 2, 2, 3]."""
        return np.diff(self.offsets)

    def prefill(self, rollout: int) -> str:
        """The beginning of that rollout's answer that its prompt already contains; usually empty."""
        return self.prefills[rollout // self.group_size] if self.prefills else ""

    def __len__(self) -> int:
        """N, the number of rollouts."""
        return len(self.offsets) - 1


class ScoreStatus(IntEnum):
    """How the grading of one rollout ended. Only OK carries the rubric's own number."""

    OK = 0
    TIMEOUT = 1
    CRASHED = 2
    INVALID = 3
    """The scorer returned something that is not a finite number."""


@dataclass(frozen=True, slots=True)
class ScoreBlock:
    """The rewards of one `RolloutBlock`, row for row.

    `rewards` is the rubric's weighted sum. `components` are its terms by name, before weighting. Where
    `grades` is not OK, the reward is `reward.failure_reward`, the components are NaN, `reasons` says in a
    line what went wrong (it is empty where OK) and `tracebacks` where, if a scorer raised an exception.
    `reflected` marks rollouts that check themselves ("wait, ..."), by `reward.reflection_pattern`. `answers`
    are what the rollouts answer, and empty where they give no answer. Equal strings of one group are votes
    for the same answer; where votes are counted (sampled answers to held-out prompts), so are answers that
    are equivalent by the checker of their task."""

    rewards: NDArray[np.float64]  # [N]
    components: Mapping[str, NDArray[np.float64]]  # each [N]; "accuracy" is 1.0 where the answer is right
    grades: NDArray[np.uint8]  # [N] of ScoreStatus
    reasons: tuple[str, ...]  # N
    reflected: NDArray[np.bool_]  # [N]
    answers: tuple[str, ...] | None = None  # N
    tracebacks: tuple[str, ...] = ()  # N; empty if no scorer raised an exception


@dataclass(frozen=True, slots=True)
class GroupTicket:
    """What the controller knows of one scored group: a few numbers, never a token.

    `oldest_version` is the version of its oldest token: at least the learner's when the group was requested.
    `block` and `scores` are the blocks that hold the group at row `row`.
    `informative` is False if the rollouts of the group do not differ (see `GroupFacts`), so that there is
    nothing to learn from comparing them; `solved` is True if all of them are right.
    """

    group_id: int
    prompt_id: str
    oldest_version: WeightVersion
    tokens: int
    reward_mean: float
    informative: bool
    row: int
    block: BlockRef = field(repr=False)
    scores: ScoreRef = field(repr=False)
    solved: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """The groups of one learner step. `step` counts from 0; the step turns version `step` into
    version `step + 1`.
    """

    step: int
    tickets: tuple[GroupTicket, ...]

    @property
    def oldest_version(self) -> WeightVersion:
        """The oldest version among all tokens of the batch."""
        return min(ticket.oldest_version for ticket in self.tickets)


@dataclass(frozen=True, slots=True)
class BatchPart:
    """Some groups of one block, as a learner rank receives them: the columns and which rows of
    groups to train on.
    """

    rollouts: RolloutBlock
    scores: ScoreBlock
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """How the tokens of a step spread over the experts of one layer: a share for each, 1 in all. Two experts
    of layer 1 that saw 6 and 2 tokens: `ExpertLoad(1, (0.75, 0.25))`.
    """

    layer: int
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TokenWork:
    """What a model read and predicted, counted so that its operations follow exactly; `a + b` is both.

    The module's example, trained on, with prompts of 4 tokens: rows of 6, 6, 6 and 7 tokens, so 25 tokens, 9
    predicted ones, and 6 x 7 / 2 + ... + 7 x 8 / 2 = 91 pairs.
    """

    tokens: int = 0
    """Tokens that went through the layers."""
    predicted: int = 0
    """Tokens that the output head predicted, to be sampled or trained on."""
    pairs: int = 0
    """Of a token and one that it attends to, itself among them."""

    def __add__(self, other: TokenWork) -> TokenWork:
        return TokenWork(
            self.tokens + other.tokens, self.predicted + other.predicted, self.pairs + other.pairs
        )


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did: metrics under the names listed in docs/reference/metrics.md, at `step` (1 after
    the first update).
    """

    step: int
    metrics: Mapping[str, float]
    routing: tuple[ExpertLoad, ...] = ()
    """Of each layer that has experts; empty for a dense model."""
    trained: TokenWork = TokenWork()
    """Forward and backward, by all learner ranks together."""
    sampled: TokenWork = TokenWork()
    """By the rollout workers, for the rollouts that arrived since the report before."""
