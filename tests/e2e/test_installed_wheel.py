"""The package installed from a wheel works from any folder, without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel and the dependencies of the test environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    # After the wheel's own files on the path, and without the .pth file of the editable installation.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def call(bin_folder: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environ["ORCHESTRATOR_OUTPUT_DIR"] = str(cwd / "runs")
    command = [str(bin_folder / "orchestrator"), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.ray
def test_an_installed_wheel_composes_checks_and_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [installed / "python", "-c", "import orchestrator; print(orchestrator.__file__)"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(installed.parent)), "the repository must not be imported"
    config = call(installed, tmp_path, "config", "grpo", "algorithm=dr_grpo")
    assert config.returncode == 0, config.stderr
    assert "job: grpo" in config.stdout
    doctor = call(installed, tmp_path, "doctor", "--json")
    assert doctor.returncode == 0, doctor.stdout
    run = call(installed, tmp_path, "run", "grpo", "experiment=smoke", "steps=1", "tracking=none")
    assert run.returncode == 0, run.stdout + run.stderr
    assert list((tmp_path / "runs").glob("*/report.html"))
