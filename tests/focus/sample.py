"""A ledger with everything that an export can contain: measured and stated usage, with and without labels or
a node, spot and on-demand, idle time, a closed month, and an adjustment of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.ledger.calendar import DAY_NS, HOUR_NS, month_bounds
from orchestrator.ledger.events import LeaseClosed, LeaseOpened, RunDeclared, SpanRecorded, UsageStated
from orchestrator.ledger.ledger import Ledger

START = month_bounds("2026-09")[0] * DAY_NS

PRICES: dict[str, Any] = {
    "name": "sample",
    "currency": "USD",
    "region": "us-east-1",
    "commitment": "on_demand",
    "prices": [
        {
            "sku": sku,
            "resource": "gpu",
            "region": region,
            "commitment": commitment,
            "amount": amount,
            "accelerators": 8,
            "currency": "USD",
            "from": "2020-01-01",
            "to": None,
            "source": "made up",
            "retrieved": "2026-01-01",
        }
        for sku, region, commitment, amount in (
            ("p5.48xlarge", "us-east-1", "on_demand", "55.04"),
            ("p5.48xlarge", "us-east-1", "spot", "20.11"),
            ("p4d.24xlarge", "us-east-1", "on_demand", "21.957642"),
        )
    ],
}


def lease(run: str, number: int, start: int, hours: float, region: str, commitment: str) -> list[Any]:
    name, end = f"{run}/{number}", start + int(hours * HOUR_NS)
    node = f"i-{number % 2}"
    return [
        LeaseOpened(
            *(f"open-{name}", start, name, run, 1, "gpu", "p5.48xlarge", node, "pg", number),
            region,
            commitment,
        ),
        SpanRecorded(f"span-{name}", name, "w", "learner", "update", start, (start + end) // 2, 1, 100),
        LeaseClosed(f"close-{name}", end, name, "released"),
    ]


def sample_ledger(folder: Path) -> Ledger:
    """The ledger, in SQLite under `folder`."""
    now = [START + 20 * DAY_NS]
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.db'}", PRICES, now_ns=lambda: now[0])
    ledger.book(
        [
            RunDeclared("d1", START, "rl", 1, "grpo", "final", "lab", "cc-7", "nlp", "r1", "r1", "grpo"),
            *lease("rl", 0, START + DAY_NS - HOUR_NS // 3, 7 / 3, "us-east-1", "on_demand"),
            *lease("rl", 1, START + DAY_NS, 1 / 7, "us-east-1", "spot"),
            RunDeclared("d2", START, "anonymous", 1, "", "debug", "", "", "", "", "", ""),
            *lease("anonymous", 2, START + 2 * DAY_NS, 5, "", ""),
            UsageStated(
                *("stated", "paper", "gpu", "H800", str(2_664_000 * HOUR_NS), START, START + 3 * DAY_NS),
                *("2", "USD", "a paper"),
            ),
        ]
    )
    now[0] = START + 40 * DAY_NS
    ledger.close("2026-09")
    ledger.book(
        [
            *lease("rl", 3, START + 5 * DAY_NS, 2, "us-east-1", "on_demand"),
            *lease("rl", 4, START + 35 * DAY_NS, 3, "us-east-1", "on_demand"),
        ]
    )
    return ledger
