"""The installed program finds its configs and jobs in a wheel, and help imports nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "deepspeed", "mlflow", "transformers", "sqlalchemy", "duckdb", "pyarrow")


def run_python(
    code: str, *, path: Path, cwd: Path, arguments: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path)}
    environment.pop("ORCHESTRATOR_OUTPUT_DIR", None)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["config", "grpo"], ["runs", "--json"], ["doctor"]])
def test_commands_without_a_cluster_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom orchestrator.cli.app import run_command_line\n"
        "run_command_line(sys.argv[1:])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = run_python(code, path=REPOSITORY, cwd=tmp_path, arguments=tuple(arguments))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_console_script_returns_the_exit_code_of_the_command(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("orchestrator")
    command = [script, "run", "grpo", "rollout.group_size=1", f"output_dir={tmp_path / 'runs'}", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["key"] == "rollout.group_size"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wheel_carries_its_configs_and_jobs(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(REPOSITORY),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import sys, orchestrator, jobs\n"
        "print(orchestrator.__file__, jobs.__file__, file=sys.stderr)\n"
        "from orchestrator.cli import main\nmain()"
    )
    done = run_python(code, path=site, cwd=tmp_path, arguments=("config", "r1_demo", "--json"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == [str(site / "orchestrator/__init__.py"), str(site / "jobs/__init__.py")]
    assert [stage["name"] for stage in json.loads(done.stdout)["stages"]] == ["cold_start", "grpo"]
    packaged = {
        path.relative_to(site / "orchestrator/conf") for path in (site / "orchestrator/conf").rglob("*.yaml")
    }
    assert packaged == {
        path.relative_to(REPOSITORY / "conf") for path in (REPOSITORY / "conf").rglob("*.yaml")
    }
