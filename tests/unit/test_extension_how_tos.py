"""The packages in the how-tos for algorithms, losses and engines work as described."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALGORITHMS = ROOT / "docs" / "examples" / "my_algorithms"
ENGINES = ROOT / "docs" / "examples" / "my_engines"
SOURCES = {
    "add-an-algorithm": ALGORITHMS / "my_algorithms",
    "add-a-loss": ALGORITHMS / "my_algorithms",
    "add-an-engine": ENGINES / "my_engines",
}


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has installed the packages, with the entry points that pip writes."""
    for package in (ALGORITHMS, ENGINES):
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        metadata = tmp_path / f"{package.name}-0.1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1\n")
        points = configparser.ConfigParser()
        points.read_dict(project["entry-points"])
        with (metadata / "entry_points.txt").open("w") as file:
            points.write(file)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ALGORITHMS, ENGINES, ROOT)))}


def config(environment: dict[str, str], package: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
    command = ["config", "grpo", "--json", "--config-dir", str(package / "conf"), *overrides]
    return subprocess.run([*program, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_estimator_and_the_loss_are_chosen_by_name(installed: dict[str, str]) -> None:
    overrides = ("algorithm=spo", "algorithm.advantage=success_rate", "max_staleness=2")
    chosen = config(installed, ALGORITHMS, *overrides)
    assert chosen.returncode == 0, chosen.stdout + chosen.stderr
    algorithm = json.loads(chosen.stdout)["algorithm"]
    assert (algorithm["loss"], algorithm["advantage"]) == ("spo", "success_rate")


@pytest.mark.slow
def test_the_engine_is_chosen_by_its_config(installed: dict[str, str]) -> None:
    chosen = config(installed, ENGINES, "rollout=uncached")
    assert chosen.returncode == 0, chosen.stdout + chosen.stderr
    assert json.loads(chosen.stdout)["rollout"]["engine"] == "uncached"


@pytest.mark.slow
def test_the_facts_of_the_estimator_are_checked(installed: dict[str, str]) -> None:
    refused = config(installed, ALGORITHMS, "algorithm=success_rate", "rollout.group_size=1")
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["key"] == "rollout.group_size"


@pytest.mark.slow
def test_capabilities_that_the_engine_lacks_are_rejected(installed: dict[str, str]) -> None:
    refused = config(installed, ENGINES, "rollout=uncached", "rollout.record_routes=true")
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["key"] == "rollout.record_routes"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "override", "allowed"),
    [
        (ALGORITHMS, "algorithm=spo", "cispo, clipped, gmpo, gspo, nll, reinforce"),
        (ENGINES, "rollout=uncached", "hf, vllm, worked_solutions"),
    ],
)
def test_without_the_package_its_names_are_unknown(package: Path, override: str, allowed: str) -> None:
    refused = config(dict(os.environ), package, override)
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["allowed"] == allowed


def test_configs_are_checked_without_importing_torch(installed: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "from orchestrator.training.rollouts.engines import ENGINES\n"
        "assert ENGINES.facts('uncached').repeatable_seeds\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], env=installed, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["success_rate", "spo"])
def test_the_examples_in_the_docstrings_hold(module: str, installed: dict[str, str]) -> None:
    code = (
        f"import doctest, my_algorithms.{module} as module\n"
        "result = doctest.testmod(module)\n"
        "assert result.attempted and not result.failed\n"
    )
    subprocess.run([sys.executable, "-c", code], env=installed, check=True)


@pytest.mark.parametrize("page", SOURCES)
def test_the_page_shows_the_actual_code(page: str) -> None:
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
    lines = [line for block in text.split("```python\n")[1:] for line in block.split("```")[0].splitlines()]
    files = [
        *sorted(SOURCES[page].glob("*.py")),
        *sorted((ROOT / "orchestrator" / "training" / "learner" / "losses").rglob("*.py")),
        ROOT / "tests" / "contracts" / "test_engine_contract.py",
    ]
    source = "\n".join(file.read_text() for file in files)
    assert lines
    assert all(line in source for line in lines if line.strip())
