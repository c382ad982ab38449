"""What is wrong with a run before it starts."""

from __future__ import annotations

from datetime import date

import pytest

from orchestrator.config.compose import compose
from orchestrator.errors import ConfigError
from orchestrator.launch.checks import check_prices
from orchestrator.ledger.calendar import day_number

TODAY = day_number(date(2026, 11, 25))


@pytest.mark.parametrize("cluster", ["laptop", "gpu", "gpu_split"])
def test_every_cluster_has_a_price(cluster: str) -> None:
    check_prices(compose("grpo", [f"cluster={cluster}"]), TODAY, resumes=False)


def test_a_run_that_nobody_could_price_is_refused() -> None:
    """Its limit would never be reached, and its report would be empty."""
    with pytest.raises(ConfigError, match=r"cluster\.sku: got p5\.48xlarge, allowed: cpu-slot") as caught:
        check_prices(compose("grpo", ["cluster=gpu", "price_book=laptop"]), TODAY, resumes=False)
    assert "price_book=NAME" in str(caught.value)


def test_a_price_must_hold_today() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.sku"):
        check_prices(compose("grpo", ["cluster=gpu"]), day_number(date(2020, 1, 1)), resumes=False)


def test_a_run_whose_price_has_ended_goes_on_unless_it_has_a_limit_of_its_own() -> None:
    before = day_number(date(2020, 1, 1))
    check_prices(compose("grpo", ["cluster=gpu"]), before, resumes=True)
    with pytest.raises(ConfigError, match=r"budget\.limit=null"):
        check_prices(compose("grpo", ["cluster=gpu", "budget.limit=1"]), before, resumes=True)
