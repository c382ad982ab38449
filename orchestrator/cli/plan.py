"""`orchestrator plan`: estimates the memory, time and cost of a job before it runs.
Starts and loads nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from orchestrator.capacity.accelerators import TABLE, Range, accelerator_of
from orchestrator.capacity.job import read_job, tokens_of
from orchestrator.capacity.parameters import active_parameters, total_parameters
from orchestrator.capacity.plan import Plan, gigabytes, plan_job
from orchestrator.cli.output import print_json, print_table
from orchestrator.clock import SystemClock
from orchestrator.config import compose as configs
from orchestrator.config.run_config import RunConfig
from orchestrator.console.formats import duration, money
from orchestrator.errors import ConfigError
from orchestrator.ledger.calendar import day_of
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.money import AMOUNT_PLACES, HOUR_PLACES, rounded
from orchestrator.ledger.prices import PriceBook, UnitPrice

Estimate = dict[str, str]
"""The keys `low`, `expected` and `high` with decimal strings."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Options of the command line that replace estimates; None: use the estimate."""

    prompt_tokens: float | None
    response_tokens: float | None
    accelerators: Path | None


def plan(job: str, overrides: Sequence[str], assumed: Assumptions, as_json: bool) -> int:
    """Print the plan of a job. Returns 0 even if the job does not fit, because the plan itself succeeded."""
    config = configs.compose(job, overrides)
    stages = {stage.name: configs.compose_stage(stage) for stage in config.stages} or {"": config}
    plans = {name: _document(stage, assumed) for name, stage in stages.items()}
    document = plans[""] if "" in plans else _combine(plans)
    if as_json:
        print_json(document)
    else:
        for name, found in plans.items():
            _print_plan(name or job, found)
        if "" not in plans:
            _print_total(job, document)
    return 0


def _document(config: RunConfig, assumed: Assumptions) -> dict[str, Any]:
    """The plan of one run as JSON."""
    accelerator = accelerator_of(config.cluster.sku, assumed.accelerators or TABLE)
    job = read_job(config, _prompts(config, assumed), assumed.response_tokens)
    found = plan_job(job, accelerator, _machine_memory())
    price = _price(config)
    total, active = total_parameters(job.shape), active_parameters(job.shape)
    return {
        "feasible": found.feasible,
        "reasons": list(found.reasons),
        "gpus": found.gpus,
        "accelerator": accelerator.name,
        "parameters": {
            "total": total.total,
            "active": active.total,
            "active_without_embedding": active.without_embedding,
            "components": asdict(total),
        },
        "memory_bytes_per_gpu": {
            **asdict(found.memory),
            "total": found.memory.total,
            "limit": round(found.memory_limit),
        },
        "step_seconds": found.step_seconds.expected,
        "step": {**asdict(found.step_seconds), "stages": _stages(found)},
        "accelerator_hours": _estimate(found.accelerator_hours, Fraction(1), HOUR_PLACES),
        "amount": {
            **_estimate(found.accelerator_hours, price.per_hour, AMOUNT_PLACES),
            "currency": price.currency,
        },
        "price": {"per_hour": f"{rounded(price.per_hour, AMOUNT_PLACES):f}", "source": price.source},
        "assumptions": {
            "prompt_tokens": job.lengths.prompt,
            "response_tokens": asdict(job.lengths.response),
            "learn_utilisation": asdict(accelerator.learn),
            "generate_utilisation": asdict(accelerator.generate),
        },
    }


def _prompts(config: RunConfig, assumed: Assumptions) -> tuple[float, float]:
    """Mean and maximum number of tokens of the task's prompts, estimated from their characters."""
    if assumed.prompt_tokens is not None:
        return assumed.prompt_tokens, assumed.prompt_tokens
    from orchestrator.training.prompts.load import load_prompts

    prompts = load_prompts(config.task, config.seed, with_solutions=False)
    lengths = [len(prompt.text) for prompt in prompts.all_prompts]
    return tokens_of(sum(lengths) / len(lengths), config.model), tokens_of(max(lengths), config.model)


def _stages(found: Plan) -> dict[str, float]:
    expected = found.steps[1]
    return {"generate": expected.generate, "learn": expected.learn, "sync": expected.sync}


def _combine(plans: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Combine the plans of a pipeline's stages, which run one after another: the maximum of accelerators and
    memory, the sum of hours and costs, and the step of the last stage.
    """
    documents = list(plans.values())
    fullest = max(documents, key=lambda found: found["memory_bytes_per_gpu"]["total"])
    last = documents[-1]
    return {
        "feasible": all(found["feasible"] for found in documents),
        "reasons": [f"{name}: {reason}" for name, found in plans.items() for reason in found["reasons"]],
        "gpus": max(found["gpus"] for found in documents),
        "accelerator": last["accelerator"],
        "parameters": last["parameters"],
        "memory_bytes_per_gpu": fullest["memory_bytes_per_gpu"],
        "step_seconds": last["step_seconds"],
        "accelerator_hours": _sum([found["accelerator_hours"] for found in documents]),
        "amount": {
            **_sum([found["amount"] for found in documents]),
            "currency": last["amount"]["currency"],
        },
        "stages": [{"name": name, **found} for name, found in plans.items()],
    }


def _sum(spreads: Sequence[Mapping[str, str]]) -> Estimate:
    keys = ("low", "expected", "high")
    return {key: str(sum((Decimal(spread[key]) for spread in spreads), Decimal(0))) for key in keys}


def _estimate(estimate: Range, factor: Fraction, places: int) -> Estimate:
    return {key: f"{rounded(Fraction(value) * factor, places):f}" for key, value in asdict(estimate).items()}


def _price(config: RunConfig) -> UnitPrice:
    """Today's price of an accelerator-hour. Raises ConfigError if the price book has none."""
    try:
        book = PriceBook.parse(config.price_book)
        return book.price(config.cluster.sku, day_of(SystemClock().now_ns()))
    except LedgerError as error:
        raise ConfigError(f"price_book.{error.key}", error.value, error.allowed, error.hint) from error


def _machine_memory() -> float:
    """Bytes of this machine's memory per CPU."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(os.sched_getaffinity(0))


def _print_plan(name: str, found: Mapping[str, Any]) -> None:
    memory, step, hours, amount = (
        found[key] for key in ("memory_bytes_per_gpu", "step", "accelerator_hours", "amount")
    )
    parts = sorted((key for key in memory if key not in ("total", "limit")), key=lambda key: -memory[key])
    stages = ", ".join(f"{stage} {_seconds(value)}" for stage, value in step["stages"].items() if value)
    rows = [
        ["fits", "yes" if found["feasible"] else "NO", "; ".join(found["reasons"])],
        ["accelerators", str(found["gpus"]), found["accelerator"]],
        [
            "parameters",
            f"{found['parameters']['total']:,}",
            f"{found['parameters']['active']:,} active per token, "
            f"{found['parameters']['active_without_embedding']:,} without the embedding",
        ],
        [
            "memory per accelerator",
            gigabytes(memory["total"]),
            f"of {gigabytes(memory['limit'])}: "
            + ", ".join(f"{key} {gigabytes(memory[key])}" for key in parts if memory[key]),
        ],
        [
            "step",
            _seconds(step["expected"]),
            f"{stages}; {_seconds(step['low'])} to {_seconds(step['high'])}",
        ],
        [
            "accelerator-hours",
            f"{Decimal(hours['expected']):,.2f}",
            f"{Decimal(hours['low']):,.2f} to {Decimal(hours['high']):,.2f}",
        ],
        [
            "cost",
            f"{money(Decimal(amount['expected']))} {amount['currency']}",
            f"{money(Decimal(amount['low']))} to {money(Decimal(amount['high']))}",
        ],
    ]
    print_table((name, "expected", ""), rows, "nothing to plan")


def _print_total(job: str, document: Mapping[str, Any]) -> None:
    hours, amount = document["accelerator_hours"], document["amount"]
    row = [f"{Decimal(hours['expected']):,.2f}", f"{money(Decimal(amount['expected']))} {amount['currency']}"]
    print_table((f"{job}, all stages", "accelerator-hours", "cost"), [["", *row]], "nothing to plan")


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 60 else duration(value)
