"""Compares the log of groups with independent records of the same run: the checkpoints, the recorded
rollouts, the metrics and the usage records of the rollout workers.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.runs.audit.account import Sampled, Violation, ranges
from orchestrator.runs.audit.replay import Replay
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.files import whole_lines
from orchestrator.training.checkpoints.format import LOOP_STATE, complete, step_of
from orchestrator.training.telemetry.recorder import recorded_path, recorded_steps

GENERATE, EVALUATE = "generate", "evaluate"
TOLERANCE = 1e-6
"""The tolerance for means that were computed in floating point."""


# -- checkpoints


def compare_checkpoints(run: RunDirectory, replay: Replay, running: bool) -> Iterator[Violation]:
    """Every group below a checkpoint's next one was trained on before it, replaced, or is outstanding in it.

    Raises InputError if a checkpoint's state can't be read.
    """
    for checkpoint in complete(run.checkpoints):
        step = step_of(checkpoint.name) or 0
        if step > replay.step:
            if not running:  # otherwise it may have been written since the records were read
                yield Violation(
                    "checkpoint",
                    f"there is a checkpoint after step {step}; groups.jsonl ends after step {replay.step}",
                    step,
                )
            continue
        try:
            next_group, outstanding = _loop_state(checkpoint / LOOP_STATE)
        except FileNotFoundError:
            continue  # a live run has pruned it
        trained = {group for group, at in replay.trained.items() if at <= step}
        done = trained | replay.uninformative | replay.dropped | replay.accounted
        if lost := set(range(next_group)) - outstanding - done:
            yield Violation(
                "group_lost",
                f"the checkpoint after step {step} does without groups {ranges(lost)}: they were neither"
                " trained on nor are they outstanding",
                step,
                tuple(sorted(lost)),
            )
        if again := trained & outstanding:
            yield Violation(
                "checkpoint",
                f"the checkpoint after step {step} requests groups {ranges(again)}, which were trained on",
                step,
                tuple(sorted(again)),
            )


def _loop_state(path: Path) -> tuple[int, set[int]]:
    try:
        state = json.loads(path.read_text())
        return int(state["next_group"]), {int(group) for group, _ in state["outstanding"]}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as the state of a training loop: {error!r}") from error


# -- recorded rollouts


def compare_rollouts(run: RunDirectory, replay: Replay) -> Iterator[Violation]:
    """The recorded rollouts of a step agree with its groups in token counts and in oldest versions.

    Raises InputError if a file can't be read.
    """
    for step in recorded_steps(run.rollouts):
        found = _recorded_groups(recorded_path(run.rollouts, step))
        batches = replay.all_batches.get(step, [])
        if not batches and (step > replay.step or step <= (replay.begins_after or 0)):
            continue  # what a run failed of, before it made the step; or from before the records begin
        if found.keys() <= replay.uninformative or found in batches:
            continue
        batch = batches[-1] if batches else {}
        differing = {group for group in found.keys() | batch.keys() if found.get(group) != batch.get(group)}
        yield Violation(
            "rollouts",
            f"{recorded_path(run.rollouts, step).name} and groups.jsonl differ about groups"
            f" {ranges(differing)} of step {step}",
            step,
            tuple(sorted(differing)),
        )


def _recorded_groups(path: Path) -> dict[int, Sampled]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(path, columns=["group_id", "length", "version"]).to_pydict()
        rows = list(zip(columns["group_id"], columns["length"], columns["version"], strict=True))
        found: dict[int, Sampled] = {}
        for group, length, version in rows:
            before = found.get(group)
            versions = [version] if version >= 0 else []  # -1: a rollout without tokens
            versions += [before.oldest] if before and before.tokens else []
            found[group] = Sampled(length + (before.tokens if before else 0), min(versions, default=0))
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return found


# -- metrics


def compare_metrics(run: RunDirectory, replay: Replay) -> Iterator[Violation]:
    """metrics.jsonl has one line for every step, with the staleness of its groups.

    Raises InputError if a line can't be read.
    """
    lines: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for number, content in _objects(run.metrics):
        try:
            lines[int(content["step"])].append(dict(content["metrics"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{run.metrics}:{number} is not a line of metrics: {error!r}") from error
    reported = {step for step in replay.steps if step < replay.step}  # of the last the line may be due
    if missing := reported - lines.keys():
        yield Violation("metrics", f"metrics.jsonl has no line of steps {ranges(missing)}", min(missing))
    for step, batch in sorted(replay.steps.items()):
        if len(lines[step]) > 1:
            yield Violation("metrics", f"metrics.jsonl has {len(lines[step])} lines of step {step}", step)
        staleness = [step - 1 - sampled.oldest for sampled in batch.values()]
        expected = {
            "offpolicy/staleness_mean": sum(staleness) / len(staleness) if staleness else math.nan,
            "offpolicy/staleness_max": max(staleness, default=math.nan),
        }
        for name, value in expected.items():
            for metrics in lines[step]:
                shown = metrics.get(name)
                if not isinstance(shown, int | float) or abs(shown - value) > TOLERANCE:
                    yield Violation(
                        "metrics",
                        f"metrics.jsonl says that {name} of step {step} was {shown}; by groups.jsonl it was"
                        f" {value:g}",
                        step,
                    )


# -- usage of the rollout workers


@dataclass
class Usage:
    """The tokens that the rollout workers reported as sampled."""

    tokens: dict[str, Counter[int]] = field(
        default_factory=lambda: {GENERATE: Counter[int](), EVALUATE: Counter[int]()}
    )
    """By activity, then by the learner's version at the request."""
    by_lost_workers: dict[str, Counter[int]] = field(
        default_factory=lambda: {GENERATE: Counter[int](), EVALUATE: Counter[int]()}
    )
    """The share of workers that were lost at some point, or left before their requests were complete: some of
    their tokens may never have arrived.
    """


def read_usage(run: RunDirectory) -> Usage:
    """The usage records of the rollout workers under `ledger/`. Raises InputError if one can't be read."""
    left = [event for event in _events(run, "worker_left") if event.get("abandoned")]
    lost = {str(event.get("worker")) for event in (*_events(run, "worker_lost"), *left)}
    usage, seen = Usage(), set[tuple[str, str, int, int]]()
    for path in sorted(run.ledger.glob("*.jsonl")):
        for number, content in _objects(path):
            if content.get("type") != "span_recorded" or content.get("role") != "rollout":
                continue
            activity = str(content.get("activity"))
            if activity not in usage.tokens:
                continue
            try:
                actor = str(content["actor"])
                span = (path.name, actor, int(content["start_ns"]), int(content["end_ns"]))
                step, tokens = int(content["step"]), int(content["tokens"])
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{path}:{number} is not a usage record: {error!r}") from error
            if span in seen:  # a worker with several accelerators writes one record for each of them
                continue
            seen.add(span)
            usage.tokens[activity][step] += tokens
            if actor in lost:
                usage.by_lost_workers[activity][step] += tokens
    return usage


def compare_usage(run: RunDirectory, replay: Replay, usage: Usage, running: bool) -> Iterator[Violation]:
    """Every sampled token is in a group or an evaluation that is recorded, or was
    abandoned for a recorded reason.
    """
    repeated = {int(event.get("step", -1)) for event in _events(run, "answers_lost")}
    interrupted = replay.starts > 1 or not replay.finished
    recorded = {GENERATE: replay.arrived_tokens, EVALUATE: replay.evaluated_tokens}
    for activity, by_step in recorded.items():
        sampled = usage.tokens[activity]
        what = "groups requested" if activity == GENERATE else "the evaluation"
        for step in sorted(sampled.keys() | by_step.keys()):
            if activity == GENERATE and step < (replay.begins_after or 0):
                continue
            excess = sampled[step] - by_step[step]
            if excess < 0:
                yield Violation(
                    "tokens",
                    f"{what} after step {step} took {by_step[step]} tokens; the rollout workers sampled"
                    f" {sampled[step]}",
                    step,
                )
            given_up = (
                step in replay.abandoned_versions if activity == GENERATE else interrupted or step in repeated
            )
            if excess > usage.by_lost_workers[activity][step] and not given_up and not running:
                yield Violation(
                    "tokens",
                    f"{what} after step {step} took {by_step[step]} tokens; the rollout workers sampled"
                    f" {sampled[step]}, and none was given up",
                    step,
                )


def tokens_given_up(replay: Replay, usage: Usage) -> int:
    """The number of tokens that workers sampled but that never arrived."""
    recorded = {GENERATE: replay.arrived_tokens, EVALUATE: replay.evaluated_tokens}
    return sum(
        max(tokens - recorded[activity][step], 0)
        for activity, sampled in usage.tokens.items()
        for step, tokens in sampled.items()
    )


def _events(run: RunDirectory, event: str) -> list[Mapping[str, Any]]:
    return [content for _, content in _objects(run.events) if content.get("event") == event]


def _objects(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The lines of a log with their numbers; a last line that a
    crash has truncated is left out. Raises InputError.
    """
    for number, line in enumerate(whole_lines(path), 1):
        try:
            content: Any = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise InputError(f"{path}:{number} is not a JSON object")
        yield number, content  # pyright: ignore[reportUnknownMemberType]
