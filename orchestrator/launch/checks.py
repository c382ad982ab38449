"""Everything that can be checked before a run starts, so that it does not fail later for the same reason."""

from __future__ import annotations

from orchestrator.clock import Clock
from orchestrator.config.run_config import SECRETS, RunConfig
from orchestrator.errors import ConfigError
from orchestrator.launch.assembly import mirror_of
from orchestrator.launch.preflight import require_local_ray
from orchestrator.ledger.calendar import day_of
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.prices import PriceBook
from orchestrator.masking import masked_keys
from orchestrator.training.cluster.environments import check_interpreters
from orchestrator.training.prompts.load import load_prompts
from orchestrator.training.prompts.source import EpochPrompts
from orchestrator.training.rewards.trial import check_scorers
from orchestrator.training.rollouts.engines import ENGINES


def check(config: RunConfig, clock: Clock, *, resumes: bool) -> EpochPrompts:
    """Check the config of a run and load its prompts.

    Raises InputError for a price book that is unusable or lacks the run's SKU, a model that is missing or
    that an engine can't serve, a scorer that can't be imported, an unknown kind of checkpoint store, an
    unreadable dataset, or a prompt longer than the context. Raises StateError if the run would start Ray on
    this machine and cannot.
    """
    check_secrets(config)
    if config.cluster.address is None:
        require_local_ray(config.cluster.object_store_bytes)
    check_prices(config, day_of(clock.now_ns()), resumes=resumes)
    check_engines(config)
    check_scorers(config.reward)
    mirror_of(config, "check")
    return _checked_prompts(config)


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
    """Raise ConfigError for a price book that cannot be used, that is in another currency than the budget,
    or that has no price for the run's slots on day number `day`, because no limit could stop such a run.

    A resumed run keeps its price book, whose prices may have expired; it only needs a valid price if
    it has its own limit.
    """
    try:
        book = PriceBook.parse(config.price_book)
    except LedgerError as error:
        raise ConfigError(f"price_book.{error.key}", error.value, error.allowed, error.hint) from error
    if book.currency != config.budget.currency:
        raise ConfigError(
            "budget.currency", config.budget.currency, book.currency, "the currency of the price book"
        )
    if resumes and config.budget.limit is None:
        return
    try:
        book.price(config.cluster.sku, day)
    except LedgerError as error:
        way = "resume with budget.limit=null" if resumes else "choose another by price_book=NAME, or add it"
        hint = f"{error.key}: got {error.value}, {error.hint}; {way}"
        raise ConfigError("cluster.sku", config.cluster.sku, error.allowed, hint) from error


def check_engines(config: RunConfig) -> None:
    """Raise ConfigError for a model that can't be built, or that an engine of the run can't serve, and for a
    Python environment that can't run its actors. Reads the model's configuration, never its weights.
    """
    from orchestrator.training.models.build import check_model

    check_model(config.model)
    for name in sorted({config.rollout.engine, config.evaluation.engine}):
        ENGINES.facts(name).check(config.model)
    check_interpreters(config.cluster.environments, ENGINES.facts(config.rollout.engine).environment)


def _checked_prompts(config: RunConfig) -> EpochPrompts:
    from orchestrator.training.prompts.preflight import (
        check_prompts,
        check_stop_tokens,
        check_thinking_tags,
    )

    replays = ENGINES.facts(config.rollout.engine).replays_solutions
    ids = {"rollout": config.rollout.stop_token_ids, "evaluation": config.evaluation.stop_token_ids}
    check_stop_tokens(config.model, {f"{group}.stop_token_ids": tokens for group, tokens in ids.items()})
    budgets = {
        "rollout.thinking_token_budget": config.rollout.thinking_token_budget,
        "evaluation.thinking_token_budget": config.evaluation.thinking_token_budget,
    }
    check_thinking_tags(config.model, budgets)
    prompts = load_prompts(config.task, config.seed, with_solutions=replays)
    check_prompts(config.model, prompts, config.rollout.max_new_tokens, replays_solutions=replays)
    return prompts
