"""The auditor, on runs of the real loop amid faults, and on records that were tampered with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import DrainedError, InputError, StateError
from orchestrator.runs.audit.auditor import audit_run
from orchestrator.runs.directory import RunDirectory
from orchestrator.training.checkpoints.format import complete
from orchestrator.training.simulation.run import SimulationSettings, Stop
from orchestrator.training.simulation.stages import Faults, Timing
from tests.simulation.audited import audited, messages, run_recorded
from tests.simulation.expected import ALMOST_ONLY_FAULTS, MANY_FAULTS, assert_complete

BASE = SimulationSettings(seed=11, steps=20, max_staleness=1, prompts_per_step=8)
ALL_FAULTS = replace(MANY_FAULTS, answer_lost=0.03)
DRAINED = DrainedError("asked to stop")
TOKENS_PER_GROUP = BASE.timing.tokens_per_rollout * BASE.group_size


def test_a_run_without_faults_trains_on_everything_that_it_samples(tmp_path: Path) -> None:
    settings = replace(BASE, evaluate_every=5, heldout_prompts=6, sampled_answers=2)
    run_recorded(settings, tmp_path)
    audit = audited(tmp_path)
    assert messages(audit) == []
    assert audit.steps == 20
    assert audit.groups.to_json() == {
        "sampled": 220,
        "trained": 160,
        "stale": 0,
        "surplus": 0,
        "aborted": 0,
        "evaluation": 60,  # 5 evaluations of 6 greedy and 6 sampled groups
    }
    assert audit.tokens.trained == 160 * TOKENS_PER_GROUP
    assert audit.tokens.aborted == audit.tokens.surplus == 0


@pytest.mark.slow
@pytest.mark.parametrize("dynamic_sampling", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("max_staleness", [0, 4])
def test_hundreds_of_steps_with_every_kind_of_fault_stops_and_kills(
    max_staleness: int, dynamic_sampling: bool, tmp_path: Path
) -> None:
    settings = replace(
        BASE,
        steps=200,
        max_staleness=max_staleness,
        dynamic_sampling=dynamic_sampling,
        evaluate_every=25,
        faults=ALL_FAULTS,
    )
    for attempt in range(1, 200):
        lived = replace(settings, seed=attempt)
        interrupted: dict[str, Any] = {"stop": Stop(60.0 + attempt, DRAINED)}
        if attempt % 2:
            interrupted = {"killed_at": 17 + 13 * attempt}
        if attempt > 10:
            interrupted = {}
        simulation = run_recorded(lived, tmp_path, attempt=attempt, **interrupted)
        audit = audited(tmp_path)
        assert messages(audit) == []
        if simulation is not None:
            break
    else:
        pytest.fail("the run never ended")
    assert attempt > 3
    assert_complete(simulation, settings, tmp_path)
    assert audit.groups.trained == 200 * 8
    assert audit.tokens.trained == 200 * 8 * TOKENS_PER_GROUP
    assert (audit.groups.surplus > 0) == dynamic_sampling
    assert audit.groups.aborted > 0
    spooled = sum(
        json.loads(line)["tokens"]
        for path in (tmp_path / "ledger").iterdir()
        for line in path.read_text().splitlines()
        if json.loads(line)["role"] == "rollout"
    )
    assert audit.tokens.sampled == spooled


@pytest.mark.parametrize("seed", range(8))
def test_short_runs_in_which_almost_everything_fails(seed: int, tmp_path: Path) -> None:
    faults = replace(ALMOST_ONLY_FAULTS, answer_lost=0.2)
    settings = replace(
        BASE,
        seed=seed,
        steps=6,
        max_staleness=seed % 4,
        prompts_per_step=1 + seed % 5,
        evaluate_every=seed % 3,
        checkpoint_every=1 + seed % 2,
        dynamic_sampling=bool(seed % 2),
        max_resampled=20.0,
        faults=faults,
        timing=Timing(portions=1 + seed % 3),
        rollouts_per_worker=1 + 4 * (seed % 4),
    )
    run_recorded(settings, tmp_path)
    audit = audited(tmp_path)
    assert messages(audit) == []
    assert audit.groups.trained == 6 * settings.prompts_per_step


def test_what_a_killed_run_trained_after_its_checkpoint_is_aborted(tmp_path: Path) -> None:
    """At staleness 0, killed when step 13 was made; the checkpoint is that of step 10."""
    settings = replace(BASE, max_staleness=0)
    run_recorded(settings, tmp_path, killed_at=13)
    killed = audited(tmp_path)
    assert (killed.steps, killed.groups.trained, killed.groups.aborted) == (13, 104, 0)
    run_recorded(settings, tmp_path, attempt=2)
    resumed = audited(tmp_path)
    assert messages(killed) == messages(resumed) == []
    assert (resumed.steps, resumed.groups.trained, resumed.groups.aborted) == (20, 160, 24)
    assert resumed.tokens.aborted == 24 * TOKENS_PER_GROUP


@pytest.mark.parametrize("change", [{"steps": 8}, {"max_staleness": 0}, {"max_staleness": 5}], ids=str)
def test_a_run_that_goes_on_with_other_settings(change: dict[str, int], tmp_path: Path) -> None:
    settings = replace(BASE, max_staleness=4, checkpoint_every=0)
    run_recorded(settings, tmp_path, stop=Stop(8.0, DRAINED))
    run_recorded(replace(settings, **change), tmp_path, attempt=2)
    audit = audited(tmp_path)
    assert messages(audit) == []
    assert audit.groups.trained == 8 * change.get("steps", 20)


def test_a_live_run_has_groups_under_way(tmp_path: Path) -> None:
    run_recorded(BASE, tmp_path, stop=Stop(8.0, DRAINED))
    live, ended = (audit_run(RunDirectory(tmp_path), running) for running in (True, False))
    assert messages(live) == messages(ended) == []
    assert live.under_way > ended.under_way == 0
    assert live.groups.aborted + live.under_way == ended.groups.aborted


# -- tampered records


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after step 7, resumed after step 5, and lost some rollouts."""
    directory = tmp_path_factory.mktemp("finished")
    settings = replace(
        BASE,
        steps=12,
        checkpoint_every=5,
        dynamic_sampling=True,
        evaluate_every=6,
        faults=Faults(batch_lost=0.2, rollouts_lost=0.1),
    )
    run_recorded(settings, directory, killed_at=7)
    assert run_recorded(settings, directory, attempt=2) is not None
    assert messages(audited(directory)) == []
    return directory


Line = dict[str, Any]


def tampered(source: Path, target: Path, change: Callable[[list[Line]], None], name: str) -> set[str]:
    """The kinds of violations after `change` of the lines of a log."""
    shutil.copytree(source, target)
    path = target / name
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {violation.kind for violation in audited(target).violations}


def of(lines: list[Line], event: str, **fields: object) -> int:
    """The place of the last such record."""
    return max(
        place
        for place, line in enumerate(lines)
        if line["event"] == event and all(line[name] == value for name, value in fields.items())
    )


def remove(event: str, **fields: object) -> Callable[[list[Line]], None]:
    def change(lines: list[Line]) -> None:
        del lines[of(lines, event, **fields)]

    return change


def repeat(event: str, **fields: object) -> Callable[[list[Line]], None]:
    def change(lines: list[Line]) -> None:
        place = of(lines, event, **fields)
        lines.insert(place, dict(lines[place]))

    return change


def alter(event: str, key: str, by: Callable[[Any], Any], **fields: object) -> Callable[[list[Line]], None]:
    def change(lines: list[Line]) -> None:
        line = lines[of(lines, event, **fields)]
        line[key] = by(line[key])

    return change


def trains_on_a_group_of_the_step_before(lines: list[Line]) -> None:
    before, after = lines[of(lines, "trained", step=8)], lines[of(lines, "trained", step=9)]
    after["groups"][0] = before["groups"][0]


def more_in_the_first(values: list[int]) -> list[int]:
    return [values[0] + 1, *values[1:]]


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (remove("trained", step=9), {"step_missing", "group_lost", "version"}),
        (repeat("trained", step=9), {"step_repeated", "trained_twice"}),
        (trains_on_a_group_of_the_step_before, {"trained_twice", "group_lost", "metrics"}),
        (
            alter("trained", "groups", lambda groups: groups[1:], step=9),
            {"batch_size", "group_lost", "metrics"},
        ),
        (remove("arrived", fate="ready"), {"not_sampled", "tokens", "metrics"}),
        (repeat("arrived", fate="ready"), {"not_requested", "tokens"}),
        (alter("arrived", "tokens", more_in_the_first, fate="ready"), {"tokens"}),
        (alter("arrived", "oldest", more_in_the_first, fate="ready"), {"version", "metrics"}),
        (remove("arrived", fate="uninformative"), {"group_lost"}),
        (repeat("arrived", fate="uninformative"), {"not_requested"}),
        (remove("requested"), {"not_requested"}),
        (repeat("requested"), {"requested_twice"}),
        (alter("requested", "version", lambda version: version + 2), {"version"}),
        (remove("lost"), {"requested_twice"}),
        (repeat("lost"), {"not_requested"}),
        (repeat("evaluated", step=6), {"tokens"}),
        (alter("started", "outstanding", lambda groups: groups[1:]), {"group_lost", "requested_twice"}),
        (alter("started", "outstanding", lambda groups: [*groups, 1]), {"requested_twice", "group_lost"}),
        (alter("started", "max_staleness", lambda _: 0), {"too_stale"}),
        (remove("started", step=0), {"history_missing"}),
    ],
)
def test_a_changed_record_of_groups_is_found(
    change: Callable[[list[Line]], None], kinds: set[str], finished: Path, tmp_path: Path
) -> None:
    assert tampered(finished, tmp_path / "run", change, "groups.jsonl") == kinds


def test_an_evaluation_that_is_missing_is_found(tmp_path: Path) -> None:
    run_recorded(replace(BASE, steps=4, evaluate_every=2), tmp_path / "whole")
    kinds = tampered(tmp_path / "whole", tmp_path / "run", remove("evaluated", step=2), "groups.jsonl")
    assert kinds == {"tokens"}


@pytest.mark.parametrize("name", ["groups.jsonl", "metrics.jsonl", "ledger/1-rollout.jsonl"])
def test_a_damaged_file_is_named_and_half_a_last_line_is_not_read(
    name: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / name
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event":"trai')
    assert messages(audited(tmp_path / "run")) == []
    path.write_bytes(b'{"event":"trai\n' + whole)
    with pytest.raises(InputError, match=f"{name}:1 is not"):
        audited(tmp_path / "run")


def test_a_checkpoint_that_the_records_do_not_reach_is_found(finished: Path, tmp_path: Path) -> None:
    def cut(lines: list[Line]) -> None:
        del lines[of(lines, "trained", step=12) :]

    assert "checkpoint" in tampered(finished, tmp_path / "run", cut, "groups.jsonl")
    assert complete(tmp_path / "run" / "checkpoints")


def test_a_run_without_records_cannot_be_audited(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="has no records"):
        audited(tmp_path)


def test_the_message_names_the_step_and_the_groups(finished: Path, tmp_path: Path) -> None:
    tampered(finished, tmp_path / "run", repeat("trained", step=9), "groups.jsonl")
    repeated, twice = audited(tmp_path / "run").violations
    assert repeated.message == "step 9 was made again after step 9"
    assert (twice.step, twice.run, len(twice.groups)) == (9, "run", 8)
    assert twice.message.startswith("step 9 trains on groups ")
