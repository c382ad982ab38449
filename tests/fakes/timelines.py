"""Run directories with hand-made usage spans, in seconds after START_NS."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.timeline.spans import ActorSpan

START_NS = 1_796_050_000_000_000_000
SECOND = 1_000_000_000


def at(seconds: float) -> int:
    """A moment of the run."""
    return START_NS + round(seconds * SECOND)


def span(
    actor: str, activity: str, start: float, end: float, step: int, tokens: int = 0, **changes: Any
) -> ActorSpan:
    """A span of `<role>-<index>`. Actors of the same index share a lease."""
    role, _, index = actor.partition("-")
    values: dict[str, Any] = {"leases": (f"run/1-a/{index}.0",)} | changes
    return ActorSpan(actor, role, activity, at(start), at(end), step, tokens, **values)


def synchronous_step(step: int = 0, start: float = 0.0) -> list[ActorSpan]:
    """Ten seconds of which rollout-1 samples six, its block is scored for 0.8, and the learner works for
    2.3: the shares of the other actors are not on the critical path.
    """
    return [
        span("rollout-0", "generate", start + 0.1, start + 3.0, step, 30),
        span("rollout-1", "generate", start + 0.1, start + 6.1, step, 60),
        span("reward-0", "score", start + 3.1, start + 3.4, step, 30),
        span("reward-0", "score", start + 6.2, start + 7.0, step, 60),
        span("learner-0", "update", start + 7.2, start + 7.3, step),
        span("learner-0", "update", start + 7.3, start + 9.3, step, 90),
        span("learner-0", "sync", start + 9.4, start + 9.6, step + 1),
    ]


def write_spool(run: RunDirectory, spans: Sequence[ActorSpan], nodes: dict[str, str] | None = None) -> None:
    """Write the spool files that the actors and the controllers of these spans would leave."""
    for each in spans:
        path = run.ledger / f"{each.attempt}-{each.actor}-0.jsonl"
        with path.open("a") as file:
            for lease in each.leases:
                file.write(json.dumps(_event(each, lease)) + "\n")
    leases = sorted({(each.attempt, lease) for each in spans for lease in each.leases})
    for attempt, lease in leases:
        opened = {"type": "lease_opened", "lease_id": lease, "node": (nodes or {}).get(lease, "node-a")}
        with (run.ledger / f"{attempt}-controller.jsonl").open("a") as file:
            file.write(json.dumps({"schema": 1, "type": "run_declared"}) + "\n")
            file.write(json.dumps({"schema": 1, **opened}) + "\n")


def _event(each: ActorSpan, lease: str) -> dict[str, Any]:
    return {
        "schema": 1,
        "type": "span_recorded",
        "event_id": f"{each.actor}{each.start_ns}{lease}",
        "lease_id": lease,
        "actor": each.actor,
        "role": each.role,
        "activity": each.activity,
        "start_ns": each.start_ns,
        "end_ns": each.end_ns,
        "step": each.step,
        "tokens": each.tokens,
    }


def timed_run(path: Path, steps: int = 2, prompts: int = 6, priced: bool = True) -> RunDirectory:
    """A run of two rollout workers, one reward worker and one learner rank on two slots, which has finished
    `steps` synchronous steps of ten seconds. An accelerator-hour costs 3.60 USD.
    """
    run = RunDirectory(path)
    run.create()
    run.begin(job="grpo", purpose="debug", steps=10, at_ns=at(-5))
    run.write_config(
        f"max_staleness: 0\nrollout: {{prompts_per_step: {prompts}}}\nbudget: {{currency: USD}}\n"
    )
    write_spool(run, [each for step in range(steps) for each in synchronous_step(step, 10.0 * step)])
    for step in range(1, steps + 1):
        metrics = {"time/step": 10.0, "time/wait_batch": 7.2, "reward/mean": 0.5}
        if priced:
            metrics |= {"cost/usd": 0.02 * step, "cost/accelerator_hours": 0.02 * step / 3.6}
        run.append_metrics(step, metrics, at(10.0 * step))
    return run
