"""The engine `vllm` in its own environment, against transformers in the learner's: log-probs before and after
weight updates, rollouts that an update interrupts, and aborted ones.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from orchestrator.config.compose import compose
from orchestrator.training.rollouts.engines.vllm import PROVEN_FAMILIES
from tests.support.vllm_engine import ROOT, TINY, Sampled, sample, tiny, vllm_python
from tests.support.vllm_side import CROWD, crowded_prompt

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.long]
LOGPROB_GAP = 1e-4


@pytest.fixture(scope="module", params=["smollm2_135m", *TINY])
def sampled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in TINY:
        return sample(tiny(request.param, folder), folder)
    return sample(compose("grpo", [f"model={request.param}", "model.context=256"]).model, folder)


def test_every_proven_family_is_here() -> None:
    assert set(TINY) == set(PROVEN_FAMILIES)


def test_the_names_of_vllm_that_the_engine_uses_exist() -> None:
    page = (ROOT / "docs" / "reference" / "upstream-assumptions.md").read_text()
    names = re.findall(r"^\| `(vllm\.[\w.]+)` \|", page, re.MULTILINE)
    assert len(names) == 9
    code = "import pkgutil, sys; [pkgutil.resolve_name(name) for name in sys.argv[1:]]"
    subprocess.run([str(vllm_python()), "-c", code, *names], check=True, capture_output=True)


def test_logprobs_are_those_of_the_learner_before_and_after_an_update(sampled: Sampled) -> None:
    assert sampled.largest_gap("initial", 0) <= LOGPROB_GAP
    assert sampled.largest_gap("cooler", 0, temperature=0.6) <= LOGPROB_GAP
    assert sampled.largest_gap("updated", 1) <= LOGPROB_GAP
    assert max(sampled.gap(row, 0) for row in sampled.found["updated"]) > 0.1, "the update must show"


def test_prompts_that_do_not_fit_into_one_forward_pass_are_sampled(sampled: Sampled) -> None:
    found = sampled.found["crowded"]
    assert len(found) == CROWD
    for number, row in enumerate(found):
        assert sampled.gap(row, 0, prompt=crowded_prompt(number)) <= LOGPROB_GAP


def test_the_rollouts_of_a_group_differ(sampled: Sampled) -> None:
    tokens = [tuple(row["tokens"]) for row in sampled.found["initial"]]
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize(("how", "version"), [("continue", 2), ("recompute", 3)])
def test_an_update_under_way_gives_every_token_its_version(sampled: Sampled, how: str, version: int) -> None:
    found = sampled.found[how]
    for row in found["before"]:
        old, versions = row["versions"].count(version - 1), row["versions"]
        assert versions == [version - 1] * old + [version] * (len(versions) - old)
        assert 0 < old < len(versions)
        if how == "recompute":
            assert sampled.gap(row, version, first=old) <= LOGPROB_GAP, "the cache is of the new weights"
    assert sampled.largest_gap_after(how, version) <= LOGPROB_GAP, "no cache of old weights"


def test_the_engine_goes_on_after_rollouts_were_aborted(sampled: Sampled) -> None:
    (row,) = sampled.found["after_abort"]
    assert sampled.gap(row, 3) <= LOGPROB_GAP
    assert sampled.found["unfinished_after_abort"] == 0
