import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from orchestrator.clock import FakeClock
from orchestrator.training.telemetry.background import BackgroundTracker
from orchestrator.training.telemetry.config import TrackingConfig
from orchestrator.training.telemetry.tracker import NullTracker, RunIdentity, flatten, tracking_key
from orchestrator.training.telemetry.tracking import build_tracker

CONF = Path(__file__).parents[4] / "conf" / "tracking"


def values(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return loaded | {"uri": None}  # the interpolation is Hydra's


def test_each_backend_has_its_tracker(tmp_path: Path) -> None:
    none = build_tracker(TrackingConfig.model_validate(values("none")), tmp_path, FakeClock())
    assert isinstance(none, NullTracker)
    none.start(RunIdentity("a", "grpo", "debug", "", ""))
    none.log_metrics(1, {"policy/loss": 1.0})
    none.finish("done")
    mlflow = build_tracker(TrackingConfig.model_validate(values("mlflow")), tmp_path, FakeClock())
    assert isinstance(mlflow, BackgroundTracker)
    assert list(tmp_path.iterdir()) == []  # nothing happens before it is started


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="entity"):
        TrackingConfig.model_validate(values("mlflow") | {"entity": "mine"})


def test_building_a_tracker_imports_no_mlflow() -> None:
    program = "import sys, orchestrator.training.telemetry.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "key"),
    [("moe/router_entropy", "moe/router_entropy"), ("pass@8", "pass_at_8"), ("reward/größe", "reward/gr__e")],
)
def test_metric_names_become_keys(name: str, key: str) -> None:
    assert tracking_key(name) == key


def test_empty_groups_and_nulls_are_parameters_too() -> None:
    assert flatten({"task": {"options": {}, "path": None}}) == {"task.options": "{}", "task.path": "None"}
