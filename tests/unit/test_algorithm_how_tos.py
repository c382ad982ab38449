"""The package of docs/how-to/add-an-algorithm.md and add-a-loss.md works as the pages say."""

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
PACKAGE = ROOT / "docs" / "examples" / "my_algorithms"
MODULES = ("success_rate", "cispo")


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has installed the package: what pip writes for its entry points."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / "my_algorithms-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1\n")
    points = configparser.ConfigParser()
    points.read_dict(project["entry-points"])
    with (metadata / "entry_points.txt").open("w") as file:
        points.write(file)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, PACKAGE, ROOT)))}


def config(environment: dict[str, str], *overrides: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
    command = ["config", "grpo", "--json", "--config-dir", str(PACKAGE / "conf"), *overrides]
    return subprocess.run([*program, *command], env=environment, capture_output=True, text=True, check=False)


def test_both_components_are_chosen_by_name(installed: dict[str, str]) -> None:
    chosen = config(installed, "algorithm=cispo", "algorithm.advantage=success_rate", "max_staleness=2")
    assert chosen.returncode == 0, chosen.stdout + chosen.stderr
    algorithm = json.loads(chosen.stdout)["algorithm"]
    assert (algorithm["loss"], algorithm["advantage"]) == ("cispo", "success_rate")


def test_what_the_components_declare_is_checked(installed: dict[str, str]) -> None:
    refused = config(installed, "algorithm=success_rate", "rollout.group_size=1")
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["key"] == "rollout.group_size"


def test_without_the_package_the_names_are_unknown() -> None:
    refused = config(dict(os.environ), "algorithm=cispo")
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["allowed"] == "clipped, nll, reinforce"


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_the_docstrings_hold(module: str, installed: dict[str, str]) -> None:
    code = (
        f"import doctest, my_algorithms.{module} as module\n"
        "result = doctest.testmod(module)\n"
        "assert result.attempted and not result.failed\n"
    )
    subprocess.run([sys.executable, "-c", code], env=installed, check=True)


def test_the_pages_show_the_code_as_it_is() -> None:
    for page, module in (("add-an-algorithm", "success_rate"), ("add-a-loss", "cispo")):
        source = (PACKAGE / "my_algorithms" / f"{module}.py").read_text()
        shown = (ROOT / "docs" / "how-to" / f"{page}.md").read_text().split("```python\n")[1].split("```")[0]
        lines = [line for line in shown.splitlines() if line.strip()]
        assert all(line in source for line in lines), page
