"""Whole runs with the engine `vllm` in its own environment."""

from __future__ import annotations

import psutil
import pytest

from tests.conftest import Program
from tests.running import events_of, going_on, interrupt, last_step, pid_of, wait_for_step
from tests.support.vllm_engine import vllm_python

pytestmark = [pytest.mark.engines, pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


def words(run_id: str, *overrides: str) -> tuple[str, ...]:
    """A small run of SmolLM2 on one slot."""
    return (
        "run",
        "grpo",
        "--run-id",
        run_id,
        "rollout.engine=vllm",
        "model=smollm2_135m",
        f"cluster.environments.rollout={vllm_python()}",
        "model.context=256",
        "task.train_size=64",
        "task.heldout_size=16",
        "evaluation.prompts=4",
        "evaluation.every=3",
        "rollout.workers=1",
        "rollout.prompts_per_step=4",
        "rollout.group_size=4",
        "rollout.max_new_tokens=32",
        "+rollout.engine_options.kv_cache_bytes=200000000",
        "learner.world_size=1",
        "learner.micro_batch_tokens=512",
        "algorithm.drop_uninformative=false",
        "reward.timeout_seconds=300",
        "tracking=none",
        *overrides,
    )


def test_a_run_with_stale_rollouts_closes_its_account(program: Program) -> None:
    document = program.json(*words("vllm", "steps=3", "max_staleness=2", "rollout.on_new_weights=continue"))
    assert document["state"] == "done"
    status = program.json("status", "vllm")
    assert (status["step"], status["steps"]) == (3, 3)
    assert 0 <= status["metrics"]["offpolicy/staleness_max"] <= 2
    program("audit", "vllm")


def test_a_killed_process_of_vllm_is_a_lost_worker(program: Program) -> None:
    directory = program.output_dir / "killed"
    with going_on(program, *words("killed", "max_staleness=1")) as process:
        wait_for_step(directory, 1, process)
        worker = pid_of(directory, "rollout-0")
        (core,) = [
            child for child in psutil.Process(worker).children() if "VLLM::EngineCore" in child.cmdline()
        ]
        core.kill()
        wait_for_step(directory, last_step(directory) + 3, process)
        interrupt(process)
    assert pid_of(directory, "rollout-0") != worker
    assert "a process of vLLM died" in str(events_of(directory))
    program("audit", "killed")
