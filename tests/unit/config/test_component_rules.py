"""Combinations of components that would compute something other than intended are rejected,
also for third-party components.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestrator.config.component_rules import facts_of
from orchestrator.config.compose import compose
from orchestrator.config.errors import InvalidConfigError
from orchestrator.errors import ConfigError
from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.learner.losses import LOSSES, LossFacts
from orchestrator.training.registry import Registry
from orchestrator.training.rollouts.engines import ENGINES, EngineFacts
from orchestrator.training.rollouts.engines.vllm.options import VllmOptions

TIS = "algorithm.off_policy.correction=truncated_importance_sampling"


def refusals(job: str, *overrides: str) -> dict[str, ConfigError]:
    """The problems of a config, by key."""
    try:
        compose(job, list(overrides))
    except InvalidConfigError as error:
        return {problem.key: problem for problem in error.problems}
    except ConfigError as error:
        return {error.key: error}
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "overrides", "key", "allowed"),
    [
        ("grpo", "algorithm.loss=nll", "algorithm.advantage", "constant"),
        ("sft", TIS, "algorithm.off_policy.correction", "none"),
        ("sft", "algorithm.drop_uninformative=true", "algorithm.drop_uninformative", "false"),
        ("sft", "algorithm.dynamic_sampling=true", "algorithm.dynamic_sampling", "false"),
        ("grpo", "algorithm=reinforce_plus_plus algorithm.drop_uninformative=true",
         "algorithm.drop_uninformative", "false"),
        ("grpo", "algorithm=reinforce_plus_plus algorithm.dynamic_sampling=true",
         "algorithm.dynamic_sampling", "false"),
        ("grpo", "algorithm=dapo ~reward.components.accuracy", "algorithm.dynamic_sampling_by", "reward"),
        ("grpo", "rollout.group_size=1", "rollout.group_size", "2 or more"),
        ("grpo", "rollout.temperature=0", "rollout.temperature", "more than 0"),
        ("grpo", "algorithm=rloo max_staleness=1", "max_staleness",
         "0, or algorithm.off_policy.correction truncated_importance_sampling, "
         "or algorithm.loss cispo, clipped, gmpo, gspo"),
        ("sft", "task.solutions=null", "rollout.engine",
         "hf, vllm, or a task with task.solutions or task.solution_field"),
        ("grpo", "rollout.engine=worked_solutions", "rollout.engine", "hf, vllm"),
        ("grpo", "rollout.top_p=0.95", "rollout.top_p", "1"),
        ("grpo", "algorithm=rloo rollout.top_p=0.95", "rollout.top_p", "1"),
        ("grpo", "rollout.top_k=20", "rollout.top_k", "0"),
        ("grpo", "rollout.min_p=0.1", "rollout.min_p", "0"),
        ("grpo", "algorithm=gspo rollout.repetition_penalty=1.1", "rollout.repetition_penalty", "1"),
        ("grpo", "rollout.min_new_tokens=4", "rollout.min_new_tokens", "0"),
        ("grpo", "rollout.engine=vllm rollout.thinking_token_budget=9 evaluation.thinking_token_budget=null",
         "rollout.thinking_token_budget", "null, or rollout.engine hf"),
        ("grpo", "rollout.max_new_tokens=64 evaluation.thinking_token_budget=64",
         "evaluation.thinking_token_budget", "null, or fewer than 64"),
        ("sft", "rollout.stop_token_ids=[5] evaluation.stop_token_ids=[]", "rollout.stop_token_ids",
         "[], or rollout.engine hf, vllm"),
        ("grpo", "evaluation.engine=worked_solutions evaluation.top_k=5", "evaluation.top_k",
         "0, or evaluation.engine hf, vllm"),
        ("grpo", "algorithm.advantage=vtrace", "algorithm.advantage",
         "constant, dr_grpo, gae, grpo, reinforce_plus_plus, reinforce_plus_plus_baseline, rloo"),
        ("grpo", "algorithm=ppo learner.lora.rank=8", "learner.lora.rank", "0"),
        ("grpo", "algorithm=ppo algorithm.loss=gspo algorithm.aggregation=sequence", "algorithm.loss",
         "cispo, clipped, reinforce"),
        ("grpo", "algorithm=ppo algorithm.drop_uninformative=true", "algorithm.drop_uninformative", "false"),
        ("grpo", "algorithm=ppo algorithm.dynamic_sampling=true", "algorithm.dynamic_sampling", "false"),
        ("sft", "algorithm.advantage=gae", "algorithm.advantage", "constant"),
        ("grpo", "algorithm.loss=ppo", "algorithm.loss", "cispo, clipped, gmpo, gspo, nll, reinforce"),
        ("grpo", "algorithm=gspo algorithm.aggregation=token", "algorithm.aggregation", "sequence"),
        ("grpo", "algorithm=gmpo algorithm.dual_clip=3", "algorithm.dual_clip",
         "null, or algorithm.loss clipped, gspo"),
        ("grpo", "algorithm=cispo algorithm.dual_clip=3", "algorithm.dual_clip",
         "null, or algorithm.loss clipped, gspo"),
        ("grpo", "algorithm=rloo algorithm.dual_clip=3", "algorithm.dual_clip",
         "null, or algorithm.loss clipped, gspo"),
        ("sft", "algorithm.dual_clip=3", "algorithm.dual_clip", "null, or algorithm.loss clipped, gspo"),
        ("grpo", f"algorithm=gmpo {TIS}", "algorithm.off_policy.level", "sequence"),
        ("grpo", "algorithm=rloo learner.epochs=2", "learner.epochs", "1"),
        ("grpo", "algorithm=deepseek_r1 learner.lora.rank=8", "algorithm.kl.reference_period", "null"),
        ("sft", "algorithm.kl.coefficient=0.1 algorithm.kl.estimator=k1 algorithm.kl.applied_to=reward",
         "algorithm.kl.applied_to", "loss"),
        ("grpo", "evaluation.engine=sglang", "evaluation.engine", "hf, vllm, worked_solutions"),
        ("grpo", "rollout.engine=vllm evaluation.engine=hf", "evaluation.engine", "vllm"),
        ("grpo", "+rollout.engine_options.eager=true", "rollout.engine_options", "{}"),
        ("grpo", "rollout.engine=vllm +rollout.engine_options.nosuch=1", "rollout.engine_options.nosuch",
         ", ".join(VllmOptions.model_fields)),
        ("grpo", "rollout.engine=vllm +rollout.engine_options.block_size=0",
         "rollout.engine_options.block_size", "greater than or equal to 1"),
        ("grpo", "rollout.engine=vllm +rollout.engine_options.tensor_parallel_size=2",
         "cluster.resource", "gpu"),
        ("grpo", "rollout.engine=vllm +rollout.engine_options.tensor_parallel_size=2 cluster=gpu",
         "cluster.layout", "split"),
        ("grpo", "rollout.engine=vllm +rollout.engine_options.pipeline_parallel_size=2 cluster=gpu_split",
         "cluster.rollout.gpus", "2"),
        ("grpo", "rollout.engine=vllm rollout.record_routes=true", "rollout.record_routes", "false"),
    ],
)  # fmt: skip
def test_a_combination_is_refused(job: str, overrides: str, key: str, allowed: str) -> None:
    found = refusals(job, *overrides.split())
    assert found.keys() == {key}
    assert found[key].allowed == allowed


@pytest.mark.parametrize(
    ("job", "overrides"),
    [
        ("grpo", "algorithm=reinforce_plus_plus rollout.group_size=1"),
        ("grpo", f"algorithm=rloo max_staleness=1 {TIS}"),
        ("grpo", "algorithm=dapo max_staleness=1"),
        ("grpo", "algorithm=gspo algorithm.dual_clip=3"),
        ("grpo", "algorithm=gspo max_staleness=4 learner.minibatches=4 learner.epochs=2"),
        ("grpo", f"algorithm=gspo {TIS} algorithm.off_policy.level=sequence"),
        ("grpo", "algorithm=ppo rollout.group_size=1 learner.minibatches=4 learner.epochs=4"),
        ("grpo", f"algorithm=ppo algorithm.loss=cispo max_staleness=2 {TIS}"),
        ("grpo", "algorithm=decoupled_ppo max_staleness=4"),
        ("grpo", "algorithm=cispo max_staleness=4 learner.minibatches=4 learner.epochs=2"),
        ("grpo", "algorithm=rloo_kl learner.lora.rank=8"),
        ("grpo", "algorithm=dapo algorithm.dynamic_sampling_by=reward ~reward.components.accuracy"),
        ("sft", "rollout.group_size=1 max_staleness=1 rollout.temperature=0.6 rollout.top_p=0.9"),
        ("sft", "rollout.record_routes=true"),
        ("sft", "rollout.engine=hf rollout.top_k=20 rollout.min_p=0.1 rollout.min_new_tokens=2"),
        ("grpo", "rollout.engine=vllm max_staleness=2 rollout.stop=[END]"),
        (
            "grpo",
            "rollout.engine=vllm cluster=gpu_split cluster.rollout.gpus=2"
            " +rollout.engine_options.tensor_parallel_size=2",
        ),
        ("grpo", "rollout.stop=[END] rollout.stop_token_ids=[5]"),
        ("grpo", "algorithm=gspo rollout.thinking_token_budget=100"),
        ("grpo", "evaluation.top_k=20 evaluation.repetition_penalty=1.1 evaluation.min_new_tokens=2"),
    ],
)
def test_a_combination_is_accepted(job: str, overrides: str) -> None:
    assert refusals(job, *overrides.split()) == {}


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Third-party components without facts, each called `theirs`."""
    registries: list[Registry[object, object]] = [ADVANTAGES, LOSSES, ENGINES]  # pyright: ignore[reportAssignmentType]
    for registry in registries:
        monkeypatch.setitem(registry._components, "theirs", object())  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(registry, "_facts", dict(registry._facts))  # pyright: ignore[reportPrivateUsage]
    yield


@pytest.mark.slow
@pytest.mark.usefixtures("theirs")
def test_a_third_party_loss_is_checked_by_its_facts() -> None:
    chosen = ("algorithm=grpo_token", "algorithm.loss=theirs", "algorithm.dual_clip=null")
    assert refusals("grpo", *chosen) == {}
    assert refusals("grpo", *chosen, "max_staleness=2").keys() == {"max_staleness"}
    assert refusals("grpo", *chosen, "algorithm.dual_clip=3").keys() == {"algorithm.dual_clip"}
    LOSSES.register("theirs", LossFacts(handles_stale_rollouts=True, dual_clip=True))(LOSSES.get("theirs"))
    assert refusals("grpo", *chosen, "max_staleness=2", "algorithm.dual_clip=3") == {}


@pytest.mark.slow
@pytest.mark.usefixtures("theirs")
def test_a_third_party_estimator_is_checked_by_its_facts() -> None:
    chosen = ("algorithm=grpo_token", "algorithm.advantage=theirs")
    assert refusals("grpo", *chosen).keys() == {"algorithm.drop_uninformative"}
    ADVANTAGES.register("theirs", EstimatorFacts(group_relative=True))(ADVANTAGES.get("theirs"))
    assert refusals("grpo", *chosen) == {}
    assert refusals("grpo", *chosen, "rollout.group_size=1").keys() == {"rollout.group_size"}


@pytest.mark.slow
@pytest.mark.usefixtures("theirs")
def test_a_third_party_engine_is_checked_by_its_facts() -> None:
    chosen = ("rollout.engine=theirs", "evaluation.engine=hf", "rollout.temperature=0.8")
    assert refusals("grpo", *chosen) == {}
    assert refusals("grpo", *chosen, "rollout.record_routes=true").keys() == {"rollout.record_routes"}
    found = refusals("grpo", *chosen, "rollout.stop=[x]", "evaluation.stop_token_ids=[3]")
    assert found.keys() == {"rollout.stop"}
    assert (found["rollout.stop"].value, found["rollout.stop"].allowed) == (
        "['x']",
        "[], or rollout.engine hf, vllm",
    )
    assert "rollout.engine theirs does not support it" in found["rollout.stop"].hint
    found = refusals("grpo", *chosen, "rollout.on_new_weights=continue")
    assert found.keys() == {"rollout.on_new_weights"}
    assert found["rollout.on_new_weights"].allowed == "finish"
    ENGINES.register("theirs", EngineFacts(sampling=frozenset({"stop"})))(ENGINES.get("theirs"))
    assert refusals("grpo", *chosen, "rollout.stop=[x]") == {}
    facts = EngineFacts(logprobs="raw", records_routes=True)
    ENGINES.register("theirs", facts)(ENGINES.get("theirs"))
    assert refusals("grpo", *chosen, "rollout.record_routes=true").keys() == {"rollout.temperature"}
    ENGINES.register("theirs", replace(facts, logprobs="none"))(ENGINES.get("theirs"))
    assert refusals("grpo", *chosen).keys() == {"rollout.engine"}
    assert facts_of(compose("sft")) is not None
