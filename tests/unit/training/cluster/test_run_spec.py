"""The log that an actor opens first in the run directory."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

CRASH = """
import logging
import os
import sys
from pathlib import Path

from orchestrator.config.compose import compose
from orchestrator.launch.assembly import run_spec
from orchestrator.training.cluster.run_spec import ActorIdentity, log_to_run_directory
from orchestrator.training.usage import Role

spec = run_spec(compose("grpo", ["tracking=none"]), "run", 1, Path(sys.argv[1]))
log_to_run_directory(spec, ActorIdentity("learner-0", Role.LEARNER, 0, ()))
logging.getLogger("a").info("begins")

def native_code():
    os.abort()

native_code()
"""


@pytest.mark.slow
def test_a_crash_of_native_code_leaves_its_stack_in_the_log_of_the_actor(tmp_path: Path) -> None:
    crashed = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], capture_output=True, check=False)
    assert crashed.returncode == -signal.SIGABRT
    log = (tmp_path / "logs" / "learner-0.log").read_text()
    assert "INFO a: begins" in log
    assert "Fatal Python error: Aborted" in log
    assert "in native_code" in log
