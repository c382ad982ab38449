"""The records that the stages exchange: prompts -> rollouts -> rewards -> advantages -> learner -> weights.

The tokens of rollouts are stored in columns (`RolloutBlock`), in the object store, from the worker that
sampled them to the rank that trains on them. The controller never opens a block: it holds an opaque handle
and a `GroupTicket` for each group, so its work per step does not depend on the number of tokens.

A worked example, which the docstrings below refer to: two prompts (P = 2) with two rollouts each
(G = 2, N = 4):

    prompt 0 "1+2="  -> "3."  "4."          prompt 1 "5-5="  -> "0."  "10."

    lengths          2  2  2  3             total tokens: T = 9
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
"""Increases by one with each publish; 0 is the initial model of the run."""

BlockRef = NewType("BlockRef", object)
"""An opaque handle of a `RolloutBlock`: an `ObjectRef` on a cluster, a plain object in a simulation. Only the
stages that created it can open it.
"""

ScoreRef = NewType("ScoreRef", object)
"""An opaque handle of a `ScoreBlock`."""

RecordKind = Literal["step", "heldout"]
"""Which rollouts a record contains: `step`, those that a learner step trained on;
`heldout`, those of an evaluation.
"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, with the data that its scorers need.

    `prompt_id` is its permanent id: `<task>/<split>/<index>`, e.g. `countdown/train/17`. `reference` is plain
    JSON for the scorer (`{"target": 7, "numbers": [3, 6, 2]}`). `solution` is a worked solution that a cold
    start imitates; empty if the task has none. `columns` are the other columns of the question's row, as
    plain JSON, for custom scorers (`{"level": "Level 2"}`).
    """

    prompt_id: str
    text: str
    reference: Mapping[str, Any]
    solution: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the rollouts of one request are sampled. `temperature` 0 is greedy; `top_p` 1 keeps the whole
    distribution; `max_new_tokens` counts response tokens, including the end-of-sequence token. With the same
    weights and `seed`, an engine with repeatable seeds (`EngineFacts.repeatable_seeds`) samples the same
    tokens for a group id and index, regardless of the worker and of the other groups in the request.

    The fields with defaults are off by default. An engine supports those that `EngineFacts.sampling` names.
    They act in vLLM's order: `min_new_tokens`, `repetition_penalty`, temperature, `min_p`, `top_k`, `top_p`.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    top_k: int = 0
    """Only the k most probable tokens, and those as probable as the last of them; 0: all."""
    min_p: float = 0.0
    """Only tokens that are at least this share as probable as the most probable one; 0: all."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens that the prompt or the response contains are divided by it, and negative
    ones are multiplied by it; 1: off.
    """
    stop: tuple[str, ...] = ()
    """Strings that end a rollout. Its text ends before the string; its tokens are all that were sampled."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a rollout, in addition to the model's own. Its text does not show them."""
    min_new_tokens: int = 0
    """The first tokens of a response, among which no token ends it and no stop string is complete."""
    thinking_token_budget: int | None = None
    """The most tokens that are sampled between `<think>` and `</think>`. When they are used up, the closing
    tag is appended without sampling it, and the response continues. None: no limit.
    """


class Finish(IntEnum):
    """Why a rollout ended."""

    STOP = 0
    """The model ended its response (end of sequence), or a stop token or stop string did."""
    LENGTH = 1
    """The response reached `max_new_tokens` and was truncated."""


@dataclass(frozen=True, slots=True)
class RolloutBlock:
    """P groups of G rollouts, as columns. Rollout `i` belongs to prompt `i // group_size`.

    Shapes: P prompts, N = P * G rollouts, T response tokens in total, Q prompt tokens in total.

    `logprobs` holds for each response token the natural log of its probability under the model's distribution
    at the sampling temperature, over the whole vocabulary and before penalties. `versions` holds the weight
    version with which each token was sampled. `trainable` is False for tokens that the model did not sample
    (the closing tag that a thinking budget forces, the observations of an environment).
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
    texts: tuple[str, ...]  # N decoded responses, without the tokens or the stop string that end them
    prompt_routes: NDArray[np.int16] | None = None  # [Q, R, k]
    routes: NDArray[np.int16] | None = None  # [T, R, k]
    """The k experts that each of the R routers chose for a token, if the engine recorded them; -1 for a token
    that the model never read (the last one of a rollout).
    """
    prefills: tuple[str, ...] = ()
    """For each of the P prompts, the beginning of the response that it already contains, such as
    `<think>` in some chat templates; empty if no prompt has one. The model continues from there: its
    whole response is the prefill and the text.
    """
    limits: NDArray[np.int32] | None = None  # [P]
    """Maximum number of response tokens for each prompt: `max_new_tokens`, or fewer if the context is full
    earlier. None: `max_new_tokens` for every prompt.
    """

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Response tokens of each rollout, [N]. In the module's example: [2, 2, 2, 3]."""
        return np.diff(self.offsets)

    def prefill(self, rollout: int) -> str:
        """The beginning of the rollout's response that its prompt already contains; usually empty."""
        return self.prefills[rollout // self.group_size] if self.prefills else ""

    def __len__(self) -> int:
        """N, the number of rollouts."""
        return len(self.offsets) - 1


class ScoreStatus(IntEnum):
    """The result of scoring one rollout. Only OK rollouts have a score."""

    OK = 0
    TIMEOUT = 1
    CRASHED = 2
    INVALID = 3
    """The scorer returned something other than a finite number."""


@dataclass(frozen=True, slots=True)
class ScoreBlock:
    """The rewards of one `RolloutBlock`, row by row.

    `rewards` is the rubric's weighted sum. `components` are its terms by name, before weighting. If a row of
    `grades` is not OK, the reward is `reward.failure_reward`, the components are NaN, `reasons` describes the
    failure in one line (it is empty for OK rows), and `tracebacks` shows where a scorer raised an exception.
    `reflected` marks rollouts that reflect on their own reasoning ("wait, ..."), by
    `reward.reflection_pattern`. `answers` holds the answer of each rollout, empty if it gives none. Equal
    strings within a group are votes for the same answer; if votes are counted (sampled answers to held-out
    prompts), answers that the task's checker considers equivalent are made equal.
    """

    rewards: NDArray[np.float64]  # [N]
    components: Mapping[str, NDArray[np.float64]]  # each [N]; "accuracy" is 1.0 if the answer is correct
    grades: NDArray[np.uint8]  # [N] of ScoreStatus
    reasons: tuple[str, ...]  # N
    reflected: NDArray[np.bool_]  # [N]
    answers: tuple[str, ...] | None = None  # N
    tracebacks: tuple[str, ...] = ()  # N; empty if no scorer raised an exception


@dataclass(frozen=True, slots=True)
class GroupTicket:
    """The controller's record of one scored group: an id and a few numbers, no tokens.

    `oldest_version` is the version of the group's oldest token, at least the learner's version at the time of
    the request. `block` and `scores` are handles of the blocks that hold the group at row `row`.
    `informative` is False if the rollouts of the group do not differ (see `GroupFacts`), so that comparing
    them gives no training signal; `solved` is True if all of them are correct.
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
    """The groups of one learner step. `step` counts from 0; the step turns version
    `step` into version `step + 1`.
    """

    step: int
    tickets: tuple[GroupTicket, ...]
    dropped: tuple[int, ...] = ()
    """Ids of groups that were sampled in excess and are no longer needed (`rollout.over_sample_rate`)."""

    @property
    def oldest_version(self) -> WeightVersion:
        """The oldest version among all tokens of the batch."""
        return min(ticket.oldest_version for ticket in self.tickets)


@dataclass(frozen=True, slots=True)
class BatchPart:
    """Some groups of one block, as a learner rank receives them: the columns, and the
    rows of the groups to train on.
    """

    rollouts: RolloutBlock
    scores: ScoreBlock
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """How the tokens of a step are distributed over the experts of one layer, as shares that add up to 1.
    Example: two experts of layer 1 with 6 and 2 tokens are `ExpertLoad(1, (0.75, 0.25))`.
    """

    layer: int
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TokenWork:
    """The work of a model, counted such that its FLOPs can be computed exactly; `a + b` is the sum.

    The module's example, when trained on with prompts of 4 tokens, has rows of 6, 6, 6 and 7 tokens, so 25
    tokens, 9 predicted ones, and 6 x 7 / 2 + ... + 7 x 8 / 2 = 91 pairs.
    """

    tokens: int = 0
    """Tokens that went through the layers."""
    predicted: int = 0
    """Tokens that the output head predicted, for sampling or training."""
    pairs: int = 0
    """Pairs of a token and one that it attends to, including itself."""

    def __add__(self, other: TokenWork) -> TokenWork:
        return TokenWork(
            self.tokens + other.tokens, self.predicted + other.predicted, self.pairs + other.pairs
        )


@dataclass(frozen=True, slots=True)
class StepReport:
    """The metrics of one step, under the names listed in docs/reference/metrics.md.
    `step` is 1 after the first update.
    """

    step: int
    metrics: Mapping[str, float]
    routing: tuple[ExpertLoad, ...] = ()
    """The loads of each layer with experts; empty for a dense model."""
    trained: TokenWork = TokenWork()
    """Forward and backward passes of all learner ranks together."""
    sampled: TokenWork = TokenWork()
    """Work of the rollout workers for the rollouts that arrived since the last report."""
