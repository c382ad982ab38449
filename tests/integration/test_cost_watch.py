"""A real Ray cluster that does not know the ledger, watched from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run_command_line

pytestmark = [pytest.mark.slow, pytest.mark.ray]

CLUSTER = """\
import sys
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(num_cpus=4, num_gpus=4, include_dashboard=True, dashboard_port=0, log_to_driver=False)


@ray.remote(num_cpus=0)
class Worker:
    def ready(self):
        return True


group = placement_group([{"GPU": 1, "CPU": 1}, {"GPU": 1, "CPU": 1}])
ray.get(group.ready())
inside = Worker.options(num_gpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
alone = Worker.options(num_gpus=1).remote()
sharing = [Worker.options(num_gpus=0.5).remote() for _ in range(2)]
ray.get([worker.ready.remote() for worker in (inside, alone, *sharing)])
print(ray._private.worker._global_node.webui_url, ray._private.worker._global_node.gcs_address, flush=True)
sys.stdin.readline()
ray.kill(alone)
remove_placement_group(group)
print("removed", flush=True)
sys.stdin.readline()
ray.shutdown()
"""


class Cluster:
    """A driver in its own process, which holds 4 GPUs and then releases 3 of them."""

    def __init__(self, driver: subprocess.Popen[str]) -> None:
        self._driver = driver
        self.dashboard, self.gcs = self._read().split()

    def _read(self) -> str:
        assert self._driver.stdout is not None
        line = self._driver.stdout.readline()
        assert line, "the cluster did not start"
        return line

    def give_back(self) -> None:
        assert self._driver.stdin is not None
        self._driver.stdin.write("\n")
        self._driver.stdin.flush()
        assert self._read() == "removed\n"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Cluster]:
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray puts its token there
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], **pipes, stderr=subprocess.DEVNULL, text=True
    ) as it:
        yield Cluster(it)
        it.communicate("\n\n", timeout=300)


def ask(*words: str) -> Any:
    """The output of a `cost` command in its own process, because Ray only reads
    its authentication settings once.
    """
    command = [str(Path(sys.executable).parent / "orchestrator"), "cost", *words, "--json"]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def look_until(enough: Callable[[int], bool], *words: str) -> None:
    """Take snapshots until enough is held, because Ray's dashboard lags behind."""
    deadline = time.monotonic() + 300
    while not enough(held := ask(*words)["held"]):
        assert time.monotonic() < deadline, f"Ray shows {held} as held"


def test_groups_and_actors_of_a_cluster_are_leased_while_they_live(cluster: Cluster, tmp_path: Path) -> None:
    where = ["--output-dir", str(tmp_path / "runs")]
    look = ["watch", "--once", "--gpu-sku", "cpu-slot", "--team", "shared", *where]
    look_until(lambda held: held == 4, *look, "--address", f"http://{cluster.dashboard}")
    cluster.give_back()
    # The same cluster at the address that drivers use.
    look_until(lambda held: held <= 1, *look, "--address", cluster.gcs)
    rows = ask("report", "--by", "lease,team,resource", *where)["rows"]
    assert {(row["team"], row["resource"]) for row in rows} == {("shared", "gpu")}
    assert len({row["lease"] for row in rows}) == 4
    rows = ask("report", "--by", "lease,activity", *where)["rows"]
    used = {row["lease"] for row in rows if row["activity"] == "run" and row["ns"] > 0}
    unused = [row["activity"] for row in rows if row["lease"] not in used]
    assert len(used) == 3 and unused == ["idle"], "no actor was put into the group's other bundle"
    assert ask("quarantine", *where) == []


def test_a_missing_cluster_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cost", "watch", "--once", "--json", "--output-dir", str(tmp_path)]
    assert run_command_line([*words, "--address", "http://127.0.0.1:9"]) == 2
    assert json.loads(capsys.readouterr().out)["value"] == "http://127.0.0.1:9"
