"""Every config of `conf/algorithm` is complete and valid, and impossible
combinations are rejected with the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from orchestrator.training.advantages.config import AlgorithmConfig

FOLDER = Path(__file__).parents[4] / "conf" / "algorithm"
FILES = sorted(FOLDER.glob("*.yaml"))

KL = {"coefficient": 0.1, "estimator": "k3", "applied_to": "loss", "reference_period": None}
GAE = {"gamma": 1.0, "lam": 0.95, "value_coefficient": 0.1, "value_clip": 0.2}
OFF_POLICY = {"correction": "none", "level": "token", "minimum": 0.0, "truncation": 2.0}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def test_all_algorithms_are_listed() -> None:
    assert {path.stem for path in FILES} == {
        "cispo", "dapo", "decoupled_ppo", "deepseek_r1", "dr_grpo", "gmpo", "grpo", "grpo_icepop",
        "grpo_seq_mis", "grpo_seq_tis", "grpo_tis", "grpo_token", "gspo", "ppo", "reinforce_plus_plus",
        "reinforce_plus_plus_baseline", "rloo", "rloo_kl", "sft",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_a_complete_config_with_its_own_name(path: Path) -> None:
    assert AlgorithmConfig.model_validate(load(path.stem)).name == path.stem


def test_published_settings() -> None:
    grpo, dapo, dr_grpo = (AlgorithmConfig.model_validate(load(name)) for name in ("grpo", "dapo", "dr_grpo"))
    # DeepSeekMath: per-rollout mean, k3 with coefficient 0.04.
    assert (grpo.aggregation, grpo.kl.estimator, grpo.kl.coefficient) == ("sequence", "k3", 0.04)
    # DAPO: clip 0.2 below and 0.28 above, token-level loss, dynamic sampling, no KL.
    assert (dapo.clip_low, dapo.clip_high, dapo.aggregation) == (0.2, 0.28, "token")
    assert (dapo.dynamic_sampling, dapo.dynamic_sampling_by) == (True, "accuracy")
    assert dapo.kl.coefficient == 0
    # Dr. GRPO: no division by the std nor by the length.
    assert (dr_grpo.advantage, dr_grpo.aggregation, dr_grpo.kl.coefficient) == ("dr_grpo", "constant", 0)


def test_the_settings_of_deepseek_r1_are_valid() -> None:
    r1 = AlgorithmConfig.model_validate(load("deepseek_r1"))
    assert (r1.kl.coefficient, r1.kl.estimator, r1.clip_low, r1.clip_high) == (0.001, "k3", 10, 10)
    assert r1.kl.reference_period == 400
    assert (r1.advantage, r1.loss, r1.aggregation) == ("grpo", "clipped", "sequence")


@pytest.mark.parametrize("name", ["grpo_tis", "grpo_seq_tis", "grpo_icepop", "grpo_seq_mis"])
def test_corrected_algorithms_differ_from_their_base_in_the_correction_alone(name: str) -> None:
    base, corrected = load("grpo_token"), load(name)
    changed = {key for key in base if base[key] != corrected[key]}
    assert changed == {"name", "off_policy"}


def test_groups_of_zero_advantage_are_kept_under_a_kl_penalty() -> None:
    with pytest.raises(ValidationError) as refusal:
        AlgorithmConfig.model_validate(load("grpo") | {"drop_uninformative": True})
    (error,) = refusal.value.errors()
    assert error["type"] == "refused"
    assert error["msg"].startswith("drop_uninformative: got true, allowed: false (with kl.coefficient > 0")


def test_groups_of_zero_advantage_are_kept_under_an_entropy_bonus() -> None:
    with pytest.raises(ValidationError, match=r"allowed: false \(with entropy_coefficient > 0"):
        AlgorithmConfig.model_validate(load("grpo_token") | {"entropy_coefficient": 0.01})


def test_only_k1_is_taken_off_the_reward() -> None:
    kl = {"coefficient": 0.1, "estimator": "k3", "applied_to": "reward", "reference_period": None}
    with pytest.raises(ValidationError, match="estimator: got k3, allowed: k1 with applied_to reward"):
        AlgorithmConfig.model_validate(load("grpo") | {"kl": kl})


def test_weights_are_kept_between_minimum_and_truncation() -> None:
    off_policy = load("grpo_icepop")["off_policy"] | {"minimum": 5.0}
    with pytest.raises(ValidationError, match=r"minimum: got 5.0, allowed: less than truncation \(5.0\)"):
        AlgorithmConfig.model_validate(load("grpo_icepop") | {"off_policy": off_policy})


@pytest.mark.parametrize(
    "change",
    [
        {"dual_clip": 1.0}, {"clip_low": -0.1}, {"clip_high": -0.1}, {"aggregation": "mean"}, {"beta": 0.1},
        {"kl": KL | {"coefficient": -1.0}}, {"kl": KL | {"estimator": "k4"}},
        {"kl": KL | {"applied_to": "advantage"}},
        {"off_policy": OFF_POLICY | {"truncation": 0.0}}, {"off_policy": OFF_POLICY | {"minimum": -1.0}},
        {"off_policy": OFF_POLICY | {"level": "batch"}}, {"entropy_coefficient": -0.1},
        {"gae": GAE | {"gamma": 0.0}}, {"gae": GAE | {"lam": 1.1}}, {"gae": GAE | {"value_clip": 0.0}},
        {"gae": GAE | {"value_coefficient": 0.0}},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_and_unknown_keys_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AlgorithmConfig.model_validate(load("grpo") | change)


def test_the_reference_page_shows_the_values_of_the_files() -> None:
    page = (FOLDER.parents[1] / "docs" / "reference" / "algorithms.md").read_text()
    lines = page.split("## The algorithms and their settings")[1].strip().splitlines()
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[: len(FILES) + 2]
    ]
    assert [row[0] for row in rows] == [path.stem for path in FILES]
    for row in rows:
        shown = dict(zip(header, row, strict=True))
        assert flat(load(shown.pop("algorithm"))) == shown


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and values as written in YAML, without `name`."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif key != "name":
            found[prefix + key] = (
                "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            )
    return found
