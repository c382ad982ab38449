"""Turns a validated config into a running job. The command line, benchmarks and tests all start runs here.

    from orchestrator.config.compose import compose
    from orchestrator.launch import prepare, run

    prepared = prepare(compose("grpo", ["steps=10"]))   # raises InputError; nothing was started
    outcome = run(prepared)                              # blocks until the job has ended
    print(outcome.state, outcome.why, outcome.exit_code)

This package does not need a terminal: progress is sent to the `Views` that the caller passes in, and the
caller's `StopSwitch` can stop the job from any thread.

launcher       the public functions: prepare, prepare_resume, run
checks         check everything that can be checked before anything starts
assembly       builds the inputs of a run's components from its config
prepared       a job that has been checked
job_runner     run a job's file; a stage of a pipeline is a run of its own
attempt        one attempt at a run: the training loop on a cluster, and everything that watches it
stop           stop a job in an orderly way
session        start and stop Ray on a thread of its own
view           how a job shows its progress
observer       reports progress to the run directory, the tracker and the live view
usage_shipper  ships usage events from the run's spool to the ledger
budgets        keeps a run within its budgets
outcome        the report of a run that has ended, and its cost
tracking       the run in the experiment tracker
webhook        budget warnings by HTTP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.launch.launcher import Outcome, end_at_once, prepare, prepare_resume, run
    from orchestrator.launch.prepared import PreparedJob
    from orchestrator.launch.stop import StopSwitch
    from orchestrator.launch.view import LiveView, NoViews, Views

__all__ = [
    "LiveView",
    "NoViews",
    "Outcome",
    "PreparedJob",
    "StopSwitch",
    "Views",
    "end_at_once",
    "prepare",
    "prepare_resume",
    "run",
]

_MODULES = {
    "LiveView": "view",
    "NoViews": "view",
    "Outcome": "launcher",
    "PreparedJob": "prepared",
    "StopSwitch": "stop",
    "Views": "view",
    "end_at_once": "launcher",
    "prepare": "launcher",
    "prepare_resume": "launcher",
    "run": "launcher",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562; the types are those imported above
    """Import on first use, so that commands that need only a part of this package do not
    wait for Ray and torch.
    """
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
