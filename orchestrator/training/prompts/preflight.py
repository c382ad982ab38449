"""Checks a task's prompts against a model's tokenizer before a run starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerFast

from orchestrator.errors import ConfigError, PromptTooLongError
from orchestrator.training.models.build import build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts.chat_template import (
    CLOSING_TAG,
    encode_text,
    encode_texts,
    render_all,
    without_prefill,
)
from orchestrator.training.prompts.lengths import prompt_lengths
from orchestrator.training.prompts.source import EpochPrompts

logger = logging.getLogger(__name__)


def check_prompts(
    model: ModelConfig, prompts: EpochPrompts, max_new_tokens: int, *, replays_solutions: bool
) -> None:
    """Raise PromptTooLongError if a prompt leaves no room for a response in `model.context`. Raise
    ConfigError if a prompt cannot be tokenized or, for an engine that replays solutions, if a worked solution
    is missing or too long. If solutions are rewritten in every epoch, those of the first epoch are checked.
    """
    tokenizer = build_tokenizer(model)
    lengths = prompt_lengths(tokenizer, prompts)
    too_long = lengths.at_least(model.context)
    if too_long:
        raise PromptTooLongError(
            "prompt",
            f"{too_long:,} of {lengths.total:,} prompts too long, the longest {lengths.longest} of "
            f"{lengths.most:,} tokens",
            f"at most {model.context - 1:,} tokens (model.context is {model.context:,})",
            "raise model.context, shorten task.template or leave these questions out of the data",
        )
    cramped = lengths.at_least(model.context - max_new_tokens + 1)
    if cramped:
        logger.warning(
            "%d of %d prompts leave room for fewer than %d tokens (rollout.max_new_tokens) in "
            "model.context = %d: their responses are cut off earlier, after the longest prompt at %d tokens",
            cramped,
            lengths.total,
            max_new_tokens,
            model.context,
            model.context - lengths.most,
        )
    if replays_solutions:
        _check_solutions(tokenizer, model.context, prompts, max_new_tokens)


def check_stop_tokens(model: ModelConfig, ids_by_key: Mapping[str, Sequence[int]]) -> None:
    """Raise ConfigError for a token id outside the model's vocabulary, which would never be sampled."""
    if not any(ids_by_key.values()):
        return
    tokens = len(build_tokenizer(model))
    for key, ids in ids_by_key.items():
        for token in ids:
            if token >= tokens:
                hint = f"the vocabulary of model {model.name} has {tokens:,} tokens"
                raise ConfigError(key, str(token), f"0 to {tokens - 1}", hint)


def check_thinking_tags(model: ModelConfig, budgets_by_key: Mapping[str, int | None]) -> None:
    """Raise ConfigError for a thinking budget if the model's tokenizer cannot write the tag that ends it."""
    limited = {key: budget for key, budget in budgets_by_key.items() if budget is not None}
    if not limited:
        return
    try:
        encode_text(build_tokenizer(model), CLOSING_TAG)
    except ConfigError as error:
        key, budget = next(iter(limited.items()))
        hint = f"the vocabulary of model {model.name} cannot write {CLOSING_TAG}"
        raise ConfigError(key, str(budget), "null", hint) from error


def _check_solutions(
    tokenizer: PreTrainedTokenizerFast, context: int, prompts: EpochPrompts, max_new_tokens: int
) -> None:
    solved = prompts.first_epoch
    for prompt in solved:
        if not prompt.solution:
            raise ConfigError(
                "task.solutions",
                "null",
                "a worked solution for every training prompt",
                f"{prompt.prompt_id} has none; task.solution_field names the column of a file that has them",
            )
    rendered = list(render_all(tokenizer, [prompt.text for prompt in solved]))
    answers = [
        without_prefill(prompt.solution, each.prefill) for prompt, each in zip(solved, rendered, strict=True)
    ]
    for prompt, each, tokens in zip(solved, rendered, encode_texts(tokenizer, answers), strict=True):
        length, room = len(tokens) + 1, context - len(each.tokens)  # one more token ends the turn
        if length > max_new_tokens:
            raise ConfigError(
                "rollout.max_new_tokens",
                str(max_new_tokens),
                f"{length} or more",
                f"the worked solution of {prompt.prompt_id} has {length} tokens",
            )
        if length > room:
            raise ConfigError(
                "model.context",
                str(context),
                f"{len(each.tokens) + length} or more",
                f"{prompt.prompt_id} and its worked solution have so many tokens",
            )
