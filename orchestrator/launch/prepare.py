"""From a validated config to the parts of one training run, and what can be wrong with it before
anything starts.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.clock import Clock
from orchestrator.config.run_config import SECRETS, RunConfig
from orchestrator.errors import ConfigError, PromptTooLongError
from orchestrator.ledger.calendar import day_of
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.prices import PriceBook
from orchestrator.masking import masked_keys
from orchestrator.training.checkpoints.mirror import CheckpointMirror
from orchestrator.training.checkpoints.store import open_store
from orchestrator.training.cluster.parts import RunSpec
from orchestrator.training.cluster.placement import Placement, plan_placement
from orchestrator.training.loop import LoopSettings
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts.load import load_prompts
from orchestrator.training.prompts.source import EpochPrompts
from orchestrator.training.records import Prompt
from orchestrator.training.weights.choice import require_nixl

LONGEST_PROMPTS = 64
"""How many of the longest prompts are tokenized to see whether they fit: tokens grow with characters."""


def check(config: RunConfig, clock: Clock, *, resumes: bool) -> EpochPrompts:
    """The run's prompts; everything that would fail later for the same reason fails here.

    Raises ConfigError: a price book that can't be used or lacks the run's SKU, actors that don't fit their
    slot, a missing model folder, a checkpoint store of an unknown kind, a weight channel that can't be had
    here, a dataset that can't be read, a prompt longer than the context.
    """
    check_secrets(config)
    check_prices(config, day_of(clock.now_ns()), resumes=resumes)
    placement_of(config)
    check_model(config.model)
    mirror_of(config, "check")
    if config.weights.channel == "nixl":
        require_nixl()
    prompts = load_prompts(config.task, config.seed)
    check_lengths(config.model, prompts)
    return prompts


def check_secrets(config: RunConfig) -> None:
    """Raises ConfigError for a URL whose password or path was masked when the config was written."""
    values = config.model_dump(mode="json", exclude={"stages"})
    variables = {f"{part}.{key}": variable for (part, key), variable in SECRETS.items()}
    for key, text in masked_keys(values):
        hint = f"config.yaml keeps neither passwords nor webhooks: orchestrator resume RUN {key}=URL"
        if key in variables:
            hint += f", or set {variables[key]}"
        raise ConfigError(key, text, "the whole URL", hint)


def check_prices(config: RunConfig, day: int, *, resumes: bool) -> None:
    """Raises ConfigError for a price book that can't be used, that prices in another currency than the
    budget's, or that has no price for what the run holds on the day number `day`: no limit could stop it.

    A run that goes on keeps its price book, which may have ended since; so it needs that price only for a
    limit of its own.
    """
    try:
        book = PriceBook.parse(config.price_book)
    except LedgerError as error:
        raise ConfigError(f"price_book.{error.key}", error.value, error.allowed, error.hint) from error
    if book.currency != config.budget.currency:
        raise ConfigError(
            "budget.currency", config.budget.currency, book.currency, "what the price book is in"
        )
    if resumes and config.budget.limit is None:
        return
    try:
        book.price(config.cluster.sku, day)
    except LedgerError as error:
        way = "go on by budget.limit=null" if resumes else "choose another by price_book=NAME, or add it"
        hint = f"{error.key}: got {error.value}, {error.hint}; {way}"
        raise ConfigError("cluster.sku", config.cluster.sku, error.allowed, hint) from error


def check_model(model: ModelConfig) -> None:
    """Raises ConfigError if the folder that the model should come from is not one."""
    if model.path is not None and not (Path(model.path) / "config.json").is_file():
        raise ConfigError(
            "model.path", model.path, "a Hugging Face folder with a config.json", "no such folder"
        )


def check_lengths(model: ModelConfig, prompts: EpochPrompts) -> None:
    """Raises PromptTooLongError, naming the prompt, if one leaves no room for a single token of answer."""
    from orchestrator.training.models.build import build_tokenizer
    from orchestrator.training.prompts.chat_template import render_prompt

    tokenizer = build_tokenizer(model)
    for prompt in prompts.longest_first[:LONGEST_PROMPTS]:
        length = len(render_prompt(tokenizer, prompt.text))
        if length >= model.context:
            raise PromptTooLongError(
                "prompt",
                f"{prompt.prompt_id}, {length} tokens",
                f"fewer than model.context = {model.context}",
            )


def placement_of(config: RunConfig) -> Placement:
    """Who sits where."""
    return plan_placement(
        config.cluster, config.rollout.workers, config.reward.workers, config.learner.world_size
    )


def run_spec(config: RunConfig, run_id: str, attempt: int, directory: Path) -> RunSpec:
    """What the actors are told."""
    return RunSpec(
        run_id=run_id,
        attempt=attempt,
        directory=directory.resolve(),
        seed=config.seed,
        steps=config.steps,
        evaluation_engine=config.evaluation.engine,
        use_gpu=config.cluster.resource == "gpu",
        snapshots=config.checkpoint.asynchronous and config.checkpoint.every > 0,
        model=config.model,
        rollout=config.rollout,
        reward=config.reward,
        algorithm=config.algorithm,
        learner=config.learner,
        weights=config.weights,
    )


def loop_settings(config: RunConfig) -> LoopSettings:
    """What the loop is told."""
    return LoopSettings(
        steps=config.steps,
        seed=config.seed,
        group_size=config.rollout.group_size,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        max_new_tokens=config.rollout.max_new_tokens,
        evaluate_every=config.evaluation.every,
        checkpoint_every=config.checkpoint.every,
        record_every=config.tracking.record_every,
        sampled_rollouts=config.tracking.sampled_rollouts,
        dynamic_sampling=config.algorithm.dynamic_sampling,
        max_resampled=config.algorithm.max_resampled,
        grading_failure_budget=config.reward.failure_budget,
        max_learner_rebuilds=config.learner.max_restarts,
        max_data_losses=config.rollout.max_data_losses,
    )


def mirror_of(config: RunConfig, run_id: str) -> CheckpointMirror | None:
    """What copies the run's checkpoints away from here, if the config asks for it. Raises ConfigError."""
    settings = config.checkpoint
    if settings.store is None:
        return None
    store = open_store(settings.store, run_id, settings.keep)
    return CheckpointMirror(store, settings.store_failures, settings.store_retry_seconds)


def heldout_prompts(config: RunConfig, prompts: EpochPrompts) -> list[Prompt]:
    """The held-out prompts that this run evaluates on."""
    return prompts.heldout(min(config.evaluation.prompts, config.task.heldout_size))
