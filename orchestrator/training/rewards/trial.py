"""Tries a reward outside of a run: loads its scorers and scores given responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.training.records import Finish, Prompt, RolloutBlock, ScoreStatus
from orchestrator.training.rewards.completion import completions_of
from orchestrator.training.rewards.config import RewardConfig
from orchestrator.training.rewards.grader import Grader
from orchestrator.training.rewards.lanes import ScorerLanes
from orchestrator.training.rewards.rubric import component_names
from orchestrator.training.rewards.scorers import is_own


@dataclass(frozen=True, slots=True)
class Trial:
    """The score of one response."""

    response: str
    found: str | None
    """The answer found in the response according to `reward.answer_formats`."""
    reward: float
    components: Mapping[str, float]
    """By name, before weighting; empty if the response could not be scored."""
    status: ScoreStatus
    reason: str
    traceback: str


def check_scorers(config: RewardConfig) -> None:
    """Raise ConfigError unless every scorer can be loaded. Third-party scorers are loaded in a child process
    like the one that will run them; raises WorkerLostError if that kills the process.
    """
    if all(map(is_own, config.components)):
        return
    lanes = ScorerLanes(config, component_names(config.components))
    try:
        lanes.load()
    finally:
        lanes.close()


def try_reward(
    config: RewardConfig, max_new_tokens: int, prompt: Prompt, responses: Sequence[str], prefill: str = ""
) -> list[Trial]:
    """Score responses to one prompt as in a run, in child processes but without Ray. Without a tokenizer, the
    length of a response is its number of words. Raises the same errors as `Grader`.
    """
    block = _block(prompt, responses, prefill)
    found = [each.answer for each in completions_of(block, max_new_tokens, config.answer_formats)]
    with Grader(config, max_new_tokens) as grader:
        scores = grader.grade(block)
    trials: list[Trial] = []
    for row, response in enumerate(responses):
        status = ScoreStatus(int(scores.grades[row]))
        graded = status is ScoreStatus.OK
        components = {name: float(values[row]) for name, values in scores.components.items() if graded}
        trials.append(
            Trial(
                response,
                found[row],
                float(scores.rewards[row]),
                components,
                status,
                scores.reasons[row],
                scores.tracebacks[row] if scores.tracebacks else "",
            )
        )
    return trials


def _block(prompt: Prompt, responses: Sequence[str], prefill: str) -> RolloutBlock:
    lengths = [len(response.split()) for response in responses]
    tokens = sum(lengths)
    return RolloutBlock(
        group_ids=np.zeros(1, dtype=np.int64),
        group_size=len(responses),
        prompts=(prompt,),
        prompt_tokens=np.zeros(0, dtype=np.int32),
        prompt_offsets=np.zeros(2, dtype=np.int64),
        tokens=np.zeros(tokens, dtype=np.int32),
        offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        logprobs=np.zeros(tokens, dtype=np.float32),
        versions=np.zeros(tokens, dtype=np.int32),
        trainable=np.ones(tokens, dtype=np.bool_),
        finish=np.full(len(responses), Finish.STOP, dtype=np.uint8),
        texts=tuple(responses),
        prefills=(prefill,) if prefill else (),
    )
