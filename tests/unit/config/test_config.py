"""Composing and validating configs: shipped files compose, and impossible values are reported."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from orchestrator.config.compose import (
    ConfigFiles,
    compose,
    compose_stage,
    conf_dir,
    load,
    validate,
    with_resume_overrides,
)
from orchestrator.config.errors import InvalidConfigError
from orchestrator.config.resume_rules import CHANGEABLE, FIXED, may_change, why_fixed
from orchestrator.config.run_config import RunConfig, json_schema
from orchestrator.errors import ConfigError
from tests.support.composed import composed

FILES = ConfigFiles.named_by()
EXPERIMENTS = sorted((conf_dir() / "experiment").glob("*.yaml"))
GROUP_OPTIONS = [
    (group, option)
    for group, options in FILES.groups().items()
    for option in options
    if group not in ("experiment", "rollout", "algorithm")
]


def refused(job: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        compose(job, overrides)
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize("job", FILES.jobs())
def test_every_job_composes_to_a_config_with_its_name(job: str) -> None:
    config = compose(job)
    assert config.job == job
    assert validate(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_composes(path: Path) -> None:
    job = yaml.safe_load(path.read_text()).get("job", "grpo")
    assert compose(job, [f"experiment={path.stem}"]).job == job


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), GROUP_OPTIONS)
def test_every_group_option_is_valid_by_itself(group: str, option: str) -> None:
    """Two options need a value that no default can have: where the model is, and fewer held-out prompts."""
    refused: str | None = None
    try:
        compose("grpo", [f"{group}={option}"])
    except ConfigError as error:
        refused = error.key
    needs = {"model=pretrained": "model.path", "task=jsonl_example": "evaluation.prompts"}
    assert refused == needs.get(f"{group}={option}")


@pytest.mark.parametrize("algorithm", [name for name in FILES.groups()["algorithm"] if name != "sft"])
def test_every_algorithm_composes_with_sampled_rollouts(algorithm: str) -> None:
    assert compose("grpo", [f"algorithm={algorithm}"]).algorithm.loss != "nll"


def test_an_experiment_changes_values_and_group_choices_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /algorithm: dapo\n  - override /task: chain_sum\n"
        "steps: 7\nseed: 3\nrollout:\n  group_size: 4\n"
    )
    own = f"hydra.searchpath=['file://{tmp_path}']"
    config = compose("grpo", [own, "experiment=mine", "seed=5"])
    assert (config.algorithm.name, config.task.name) == ("dapo", "chain_sum")
    assert (config.steps, config.seed, config.rollout.group_size) == (7, 5, 4)


def test_an_experiment_of_another_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "cold.yaml").write_text("# @package _global_\njob: sft\n")
    error = refused("grpo", f"hydra.searchpath=['file://{tmp_path}']", "experiment=cold")
    assert (error.key, error.value, error.allowed) == ("job", "sft", "grpo")


def test_a_custom_job_is_read_from_a_folder(tmp_path: Path) -> None:
    text = (conf_dir() / "grpo.yaml").read_text().replace("job: grpo", "job: mine")
    (tmp_path / "mine.yaml").write_text(text)
    assert compose("mine", [f"hydra.searchpath=['file://{tmp_path}']"]).job == "mine"


BAD = [
    # job, overrides, key, value, part of what is allowed, part of the hint
    ("grop", [], "job", "grop", "grpo", "did you mean grpo?"),
    ("grpo", ["rollout.grup_size=2"], "rollout.grup_size", "2", "group_size", "did you mean group_size?"),
    ("grpo", ["+rollout.extra=1"], "rollout.extra", "1", "group_size", "no key"),
    ("grpo", ["algoritm=dapo"], "algoritm", "dapo", "algorithm", "did you mean algorithm?"),
    ("grpo", ["model=tiny_mo"], "model", "tiny_mo", "tiny_moe", "did you mean tiny_moe?"),
    ("grpo", ["experiment=no_such"], "experiment", "no_such", "", ""),
    ("grpo", ["task=null"], "task", "null", "countdown", ""),
    ("grpo", ["task=[a,b]"], "task", "[a,b]", "countdown", ""),
    ("grpo", ["rollout.top_k=-1"], "rollout.top_k", "-1", "greater than or equal to 0", "most probable"),
    ("grpo", ["evaluation.min_p=1.5"], "evaluation.min_p", "1.5", "less than or equal to 1", ""),
    ("grpo", ["rollout.repetition_penalty=0"], "rollout.repetition_penalty", "0", "greater than 0", ""),
    ("grpo", ["evaluation.stop=['']"], "evaluation.stop.0", "", "at least 1 character", ""),
    ("grpo", ["evaluation.stop_token_ids=[-1]"], "evaluation.stop_token_ids.0", "-1", "equal to 0", ""),
    ("grpo", ["rollout.min_new_tokens=-1"], "rollout.min_new_tokens", "-1", "equal to 0", "fewest"),
    ("grpo", ["steps=many"], "steps", "many", "integer", "Learner steps"),
    ("grpo", ["steps=1.5"], "steps", "1.5", "integer", ""),
    ("grpo", ["steps=1,2"], "steps", "steps=1,2", "one value", "sweep"),
    ("grpo", ["steps=???"], "steps", "nothing", "a value", ""),
    ("grpo", ["~steps"], "steps", "nothing", "a value", "Learner steps"),
    ("grpo", ["steps"], "override", "steps", "key=value", ""),
    ("grpo", ["a b=1"], "override", "a b=1", "key=value", ""),
    ("grpo", ["steps={"], "override", "steps={", "key=value", ""),
    ("grpo", ["steps=${no.such}"], "override", "steps=${no.such}", "", "no.such"),
    ("grpo", ["hydra.run.dir=/tmp"], "override", "hydra.run.dir=/tmp", "hydra.searchpath", ""),
    ("grpo", ["hydra.searchpath=[file:///no/such]"], "hydra.searchpath", "/no/such", "exists", ""),
    ("grpo", ["purpose=fun"], "purpose", "fun", "ablation", ""),
    ("grpo", ["budget.limit=-1"], "budget.limit", "-1", "0", ""),
    ("grpo", ["budget.currency=dollars"], "budget.currency", "dollars", "", "4217"),
    ("grpo", ["max_staleness=-1"], "max_staleness", "-1", "0", "synchronous"),
    ("grpo", ["learner.zero_stage=4"], "learner.zero_stage", "4", "3", ""),
    ("grpo", ["team=''"], "team", "", "1 character", ""),
    ("grpo", ["stages.x.steps=1"], "stages.x", "steps=1", "no stages", ""),
    ("r1_demo", ["stages.x.steps=1"], "stages.x", "steps=1", "stages.cold_start.<key>", ""),
    (
        "r1_demo",
        ["stages.grpo.rollout.group_size=1"],
        "stages.grpo.rollout.group_size",
        "1",
        "2 or more",
        "compares",
    ),
]

IMPOSSIBLE = [
    # job, changes, key, value, part of what is allowed, part of the hint
    ("grpo", "rollout.group_size=1", "rollout.group_size", "1", "2 or more", "compares"),
    ("grpo", "rollout.temperature=0", "rollout.temperature", "0.0", "more than 0", "greedy"),
    ("grpo", "learner.world_size=5", "learner.world_size", "5", "a divisor of", "shared by the ranks"),
    ("grpo", "learner.minibatches=7", "learner.minibatches", "7", "a divisor of", "optimizer updates"),
    (
        "grpo",
        "learner.world_size=4 learner.expert_parallel_size=3 rollout.workers=4",
        "learner.expert_parallel_size",
        "3",
        "a divisor of 4",
        "learner.world_size",
    ),
    (
        "grpo",
        "learner.world_size=2 learner.expert_parallel_size=2 model.architecture.n_routed_experts=7",
        "learner.expert_parallel_size",
        "2",
        "a divisor of 7",
        "routed experts",
    ),
    (
        "grpo",
        "learner.world_size=2 learner.expert_parallel_size=2 learner.lora.rank=4",
        "learner.expert_parallel_size",
        "2",
        "1 with lora.rank",
        "were not shown to be exact",
    ),
    (
        "grpo",
        "learner.world_size=2 learner.expert_parallel_size=2 model.family=gguf_package model.package=a:b",
        "learner.expert_parallel_size",
        "2",
        "1, or a model of deepseek_v2",
        "no experts",
    ),
    (
        "grpo",
        "algorithm.loss=reinforce algorithm.off_policy.correction=none max_staleness=1",
        "max_staleness",
        "1",
        "truncated_importance_sampling",
        "older weights",
    ),
    ("grpo", "task.template=hello", "task.template", "hello", "{", ""),
    ("grpo", "task.dataset=null", "task.dataset", "nothing", "a value", "reasoning_gym"),
    ("grpo", "task.source=jsonl", "task.path", "nothing", "a value", "jsonl"),
    ("grpo", "model.family=pretrained", "model.path", "nothing", "a value", "pretrained"),
    ("grpo", "rollout.max_new_tokens=100000", "rollout.max_new_tokens", "100000", "fewer than", "context"),
    (
        "grpo",
        "evaluation.min_new_tokens=145",
        "evaluation.min_new_tokens",
        "145",
        "144 or fewer",
        "max_new_tokens",
    ),
    ("grpo", "reward.overlong_buffer=1000", "reward.overlong_buffer", "1000", "or fewer", "max_new_tokens"),
    ("grpo", "evaluation.prompts=100000", "evaluation.prompts", "100000", "or fewer", "heldout_size"),
    ("sft", "evaluation.samples=4 rollout.temperature=0", "evaluation.samples", "4", "0", "greedy"),
    ("grpo", "rollout.engine=hff", "rollout.engine", "hff", "hf, vllm, worked_solutions", ""),
    ("grpo", "reward.components.no_such=1", "reward.components", "no_such", "accuracy", ""),
    ("grpo", "algorithm.advantage=gpro", "algorithm.advantage", "gpro", "grpo", ""),
    ("grpo", "algorithm.loss=nll", "algorithm.advantage", "grpo", "constant", "ignores rewards"),
    ("grpo", "learner.backend=nccl", "learner.backend", "nccl", "gloo", "no GPU"),
    ("grpo", "rollout.min_workers=3", "rollout.min_workers", "3", "null, 1 to 2", "all rollout workers"),
    ("grpo", "rollout.min_workers=0", "rollout.min_workers", "0", "greater than or equal to 1", ""),
    ("grpo", "cluster.slot_cpus=0.1", "cluster.slot_cpus", "0.1", "or more", "share one slot"),
    (
        "grpo",
        "learner.schedule=cosine learner.final_learning_rate=1",
        "learner.final_learning_rate",
        "1.0",
        "at most",
        "falls",
    ),
    ("sft", "task.solutions=null", "rollout.engine", "worked_solutions", "task.solutions", "imitate"),
]


@pytest.mark.parametrize(("job", "overrides", "key", "value", "allowed", "hint"), BAD)
def test_bad_input_is_named_with_what_is_allowed(
    job: str, overrides: list[str], key: str, value: str, allowed: str, hint: str
) -> None:
    error = refused(job, *overrides)
    assert (error.key, error.value) == (key, value)
    assert allowed in error.allowed
    assert hint in error.hint
    assert key in str(error)


@pytest.mark.parametrize(("job", "changes", "key", "value", "allowed", "hint"), IMPOSSIBLE)
def test_an_impossible_combination_is_named_with_what_is_allowed(
    job: str, changes: str, key: str, value: str, allowed: str, hint: str
) -> None:
    values = composed(job).to_json()
    for change in changes.split():
        path, _, text = change.partition("=")
        *parents, last = path.split(".")
        part = values
        for parent in parents:
            part = part[parent]
        part[last] = yaml.safe_load(text)
    with pytest.raises(ConfigError) as caught:
        validate(values)
    assert (caught.value.key, caught.value.value) == (key, value)
    assert allowed in caught.value.allowed
    assert hint in caught.value.hint


TEXTS = [
    "data/epoch=3.jsonl",
    "R&D",
    "李明",
    "a b",
    "Solve {question}",
    "{question}",
    "50 %",
    "it's",
    "a#b",
    "(x)",
    "x;y",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_with_special_characters_needs_no_quotes(text: str) -> None:
    assert compose("grpo", [f"team={text}"]).team == text


@pytest.mark.slow
def test_text_with_special_characters_reaches_stages_and_resumed_runs_unchanged() -> None:
    text = "it's {question} #1; 50 % = (李明)"
    config = compose("r1_demo", [f"team={text}", f"stages.grpo.project={text}"])
    stages = {stage.name: compose_stage(stage) for stage in config.stages}
    assert (stages["cold_start"].team, stages["grpo"].project) == (text, text)
    resumed = with_resume_overrides(composed("grpo"), [f"tracking.experiment={text}"])
    assert resumed.tracking.experiment == text


@pytest.mark.parametrize("override", ["team='a", 'team="a', "learner.adam_betas=[0.8", "budget={limit: 1"])
def test_a_malformed_value_is_rejected_with_the_correct_quoting(override: str) -> None:
    with pytest.raises(ConfigError, match="quoted twice") as caught:
        compose("grpo", [override])
    assert caught.value.value == override


def test_a_list_without_brackets_is_rejected_with_the_correct_quoting() -> None:
    with pytest.raises(ConfigError, match="""'team="a,b"'"""):
        compose("grpo", ["team=a,b"])
    assert compose("grpo", ['team="a,b"']).team == "a,b"


@pytest.mark.slow
def test_mappings_with_free_keys_are_replaced_and_config_groups_are_merged() -> None:
    assert compose("grpo", ["reward.components={accuracy: 1.0}"]).reward.components == {"accuracy": 1.0}
    only = compose("grpo", ["reward.components={accuracy: 1.0}", "+reward.components.format=0.2"])
    assert only.reward.components == {"accuracy": 1.0, "format": 0.2}
    added = compose("grpo", ["+reward.components={format: 0.3}"])
    assert added.reward.components == {"accuracy": 1.0, "format": 0.3}
    merged = compose("grpo", ["budget={limit: 5}"])
    assert (merged.budget.limit, merged.budget.currency) == (5, "USD")


@pytest.mark.slow
def test_a_tilde_after_a_key_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    config = compose("grpo", ["output_dir=~/runs", "checkpoint.store=~/kept"])
    assert (str(config.output_dir), config.checkpoint.store) == ("/home/ann/runs", "/home/ann/kept")


@pytest.mark.parametrize("folder", ["runs?a", "runs#a", "50%"])
def test_an_output_folder_that_no_url_can_hold_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="without \\?, # and %"):
        compose("grpo", [f"output_dir={folder}"])


def test_a_mapping_may_contain_keys_that_the_default_lacks() -> None:
    """For example the scorer of an installed plug-in. A scorer that is not registered
    is reported, and no other key.
    """
    with pytest.raises(ConfigError) as caught:
        compose("grpo", ["reward.components={boxed_of_mine: 1.0}"])
    assert (caught.value.key, caught.value.value) == ("reward.components", "boxed_of_mine")


def test_all_problems_are_listed_and_the_error_is_about_the_first() -> None:
    error = refused("grpo", "rollout.group_size=1", "learner.minibatches=7", "evaluation.prompts=100000")
    assert isinstance(error, InvalidConfigError)
    assert [problem.key for problem in error.problems] == [
        "evaluation.prompts",
        "rollout.group_size",
        "learner.minibatches",
    ]
    assert error.key == "evaluation.prompts"
    assert len(str(error).splitlines()) == 3
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.key, copy.exit_code) == (str(error), error.key, 2)


@pytest.mark.slow
def test_a_pipeline_passes_its_overrides_to_its_stages() -> None:
    pipeline = compose("r1_demo", ["seed=3", "rollout.workers=1", "stages.grpo.steps=7"])
    stages = {stage.name: compose_stage(stage) for stage in pipeline.stages}
    assert list(stages) == ["cold_start", "grpo"]
    assert {(stage.seed, stage.rollout.workers) for stage in stages.values()} == {(3, 1)}
    assert stages["grpo"].steps == 7
    assert stages["cold_start"].steps != 7
    assert stages["cold_start"].algorithm.loss == "nll"


def test_a_budget_is_exact_money() -> None:
    config = compose("grpo", ["budget.limit=0.1"])
    assert config.budget.limit == Decimal("0.1")
    assert config.to_json()["budget"]["limit"] == "0.1"


def test_a_saved_config_is_read_back_unchanged(tmp_path: Path) -> None:
    config = compose("grpo", ["task=chain_sum", "budget.limit=12.50", "learner.learning_rate=1e-8"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", [None, "a: [", "- 1\n", "seed: 1\n"])
def test_a_config_file_that_is_missing_or_damaged_is_a_config_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError):
        load(path)


def test_a_resumed_run_may_change_its_shape_and_length() -> None:
    config = composed("grpo")
    resumed = with_resume_overrides(config, ["steps=500", "learner.world_size=2", "cluster.sku=other"])
    assert (resumed.steps, resumed.learner.world_size, resumed.cluster.sku) == (500, 2, "other")
    assert with_resume_overrides(config, []) == config


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("learner.learning_rate=1", "learner.learning_rate"),
        ("seed=4", "seed"),
        ("rollout.group_size=4", "rollout.group_size"),
        ("algorithm=dapo", "algorithm"),
        ("model.dtype=bfloat16", "model.dtype"),
        ("task.seed=1", "task.seed"),
        ("price_book=aws", "price_book"),
        ("rollout=hf", "rollout"),
        ("stepss=4", "stepss"),
        ("+steps=4", "override"),
        ("~steps", "override"),
        ("cluster.no.such=4", "override"),
        ("cluster.no_such=4", "cluster.no_such"),
        ("learner.world_size=7", "learner.world_size"),
    ],
)
def test_a_resumed_run_cannot_change_its_algorithm(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_resume_overrides(composed("grpo"), [override])
    assert caught.value.key == key
    assert caught.value.exit_code == 2


def test_a_context_may_grow_on_resume_and_not_shrink() -> None:
    """A prompt that turns out to be too long for the context does not ruin the run."""
    config = composed("grpo")
    larger = config.model.context * 2
    resumed = with_resume_overrides(config, [f"model.context={larger}"])
    assert resumed.model.context == larger
    assert with_resume_overrides(resumed, [f"model.context={larger}"]) == resumed
    with pytest.raises(ConfigError, match=f"model.context: got {larger - 1}, allowed: {larger} or more"):
        with_resume_overrides(resumed, [f"model.context={larger - 1}"])


def test_a_rejected_change_explains_the_reason() -> None:
    with pytest.raises(ConfigError) as caught:
        with_resume_overrides(composed("grpo"), ["learner.learning_rate=1"])
    assert "optimizer state belongs to" in caught.value.hint
    assert "learner.world_size" in caught.value.allowed


def config_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from config_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("key", config_keys(RunConfig))
def test_every_key_either_may_change_on_resume_or_has_a_reason_why_not(key: str) -> None:
    """A new key must be added to one of the tables of orchestrator/config/resume_rules.py."""
    assert may_change(key) != (why_fixed(key) is not None)


@pytest.mark.parametrize("entry", [*CHANGEABLE, *FIXED])
def test_the_resume_tables_name_existing_keys(entry: str) -> None:
    assert any(key == entry or key.startswith(f"{entry}.") for key in config_keys(RunConfig))


@pytest.mark.slow
def test_a_resumed_pipeline_passes_overrides_to_its_stages() -> None:
    pipeline = with_resume_overrides(compose("r1_demo"), ["learner.threads=2", "stages.grpo.steps=9"])
    stages = {stage.name: compose_stage(stage) for stage in pipeline.stages}
    assert {stage.learner.threads for stage in stages.values()} == {2}
    assert stages["grpo"].steps == 9


def test_the_schema_describes_every_key() -> None:
    schema = yaml.safe_load(json_schema())
    assert set(schema["required"]) == set(RunConfig.model_fields)
    assert schema["properties"]["max_staleness"]["description"].startswith("How many weight versions")
    assert schema["additionalProperties"] is False
