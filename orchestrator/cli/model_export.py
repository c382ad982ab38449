"""Exports a checkpoint as a folder that can be published: weights, tokenizer, model
card, licence, provenance.

Export works offline and in one process, without Ray, DeepSpeed or the plug-ins that the run was trained with.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli import terminal
from orchestrator.cli.output import print_json
from orchestrator.clock import SystemClock
from orchestrator.config import compose as configs
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import CheckpointError, ConfigError, OrchestratorError
from orchestrator.launch import final_report as run_report
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.status import find_run, iso, leading_stage
from orchestrator.training.checkpoints.format import MANIFEST, complete, digests, step_of, verify
from orchestrator.training.checkpoints.store import open_store
from orchestrator.training.manifest import file_digest
from orchestrator.training.models.card import CardFacts, model_card
from orchestrator.training.models.origin import Origin, origin_of

PROVENANCE = "provenance.json"
FORMAT = 1
SETTINGS = (
    "seed",
    "max_staleness",
    "algorithm.advantage",
    "algorithm.loss",
    "algorithm.aggregation",
    "rollout.prompts_per_step",
    "rollout.group_size",
    "rollout.temperature",
    "rollout.max_new_tokens",
    "learner.learning_rate",
    "learner.minibatches",
    "learner.max_grad_norm",
    "model.dtype",
    "model.context",
)
"""The config keys shown in the model card. The complete config is in provenance.json."""


def export(reference: str, target: Path, step: int | None, output_dir: Path, as_json: bool) -> int:
    """Write the folder `target` and return 0. Raises InputError if nothing was written, CheckpointError if
    the checkpoint is damaged.
    """
    run = find_run(output_dir, reference)
    run = leading_stage(run, run.record())
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError("DIR", str(target), "a folder that does not exist, or an empty one")
    source = _Source(run, configs.load_to_read(run.config))
    with _checkpoint(source, step) as checkpoint, _written_atomically(target) as folder:
        _verify(checkpoint)
        # transformers imports accelerate and DeepSpeed where they are installed, and they log to stdout.
        with contextlib.redirect_stdout(sys.stderr):
            document = _write(source, checkpoint, folder)
    document |= {"directory": str(target), "provenance": str(target / PROVENANCE)}
    if as_json:
        print_json(document)
    else:
        what = f"{document['model']}, {document['parameters']:,} parameters"
        terminal.say(f"{target}: {what}, step {document['step']} of {document['run_id']}")
    return 0


@dataclass(frozen=True, slots=True)
class _Source:
    """The run that trained the model."""

    run: RunDirectory
    config: RunConfig


def _write(source: _Source, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Write all files of the folder. Returns the document for `--json`."""
    from orchestrator.training.learner.adapters import merged_from
    from orchestrator.training.learner.offline import read_weights
    from orchestrator.training.models.build import build_model, build_tokenizer
    from orchestrator.training.models.export import write_model
    from orchestrator.training.prompts.chat_template import stop_tokens

    run, config = source.run, source.config
    weights, lora = read_weights(checkpoint), config.learner.lora
    if lora.rank:
        weights = merged_from(build_model(config.model, config.seed), lora, config.seed, weights)
    stops = stop_tokens(build_tokenizer(config.model))
    parameters = write_model(config.model, config.seed, weights, folder, stops)
    lineage, origin = _lineage(source)
    manifest = _manifest(run)
    facts = CardFacts(
        run_id=run.run_id,
        job=config.job,
        step=step_of(checkpoint.name) or 0,
        origin=origin,
        lineage=lineage,
        parameters=parameters,
        dtype=config.model.dtype,
        task=config.task.name,
        data_sha256=manifest.get("data_sha256", {}),
        settings={key: _value(config.to_json(), key) for key in SETTINGS},
        heldout=_heldout(run, step_of(checkpoint.name) or 0),
        cost=_cost(source),
    )
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
    for file in origin.licence_files:
        shutil.copyfile(file, folder / file.name)
    provenance = _provenance(source, checkpoint, manifest, facts, folder)
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    return {
        "run_id": run.run_id,
        "step": facts.step,
        "model": origin.name,
        "licence": origin.licence,
        "parameters": parameters,
        "accuracy_heldout": None if facts.heldout is None else facts.heldout[1],
        "files": sorted([*provenance["files"], PROVENANCE]),
    }


def _provenance(
    source: _Source, checkpoint: Path, manifest: dict[str, Any], facts: CardFacts, folder: Path
) -> dict[str, Any]:
    """Everything that the model was made from, with digests of the files."""
    run, origin = source.run, facts.origin
    return {
        "format": FORMAT,
        "exported": iso(SystemClock().now_ns()),
        "run_id": run.run_id,
        "job": facts.job,
        "step": facts.step,
        "lineage": list(facts.lineage),
        "origin": {
            "name": origin.name,
            "kind": origin.kind,
            "where": origin.where,
            "licence": origin.licence,
        },
        "checkpoint": {"name": checkpoint.name, "manifest_sha256": file_digest(checkpoint / MANIFEST)},
        "config": source.config.to_json(),
        "config_sha256": file_digest(run.config),
        "data_sha256": dict(facts.data_sha256),
        "started_from": manifest.get("model"),
        "git": manifest.get("git"),
        "packages": manifest.get("packages"),
        "accuracy_heldout": None
        if facts.heldout is None
        else {"step": facts.heldout[0], "value": facts.heldout[1]},
        "cost": facts.cost,
        "files": digests(folder),
    }


@contextlib.contextmanager
def _checkpoint(source: _Source, step: int | None) -> Generator[Path]:
    """Find the checkpoint of `step`, or the newest one, in the run directory or else in the run's store."""
    kept = {step_of(path.name): path for path in complete(source.run.checkpoints)}
    if kept and step is None:
        yield list(kept.values())[-1]
    elif step in kept:
        yield kept[step]
    else:
        with tempfile.TemporaryDirectory(prefix="orchestrator-export-") as directory:
            yield _fetched(source, step, list(kept), Path(directory))


def _fetched(source: _Source, step: int | None, kept: list[int | None], directory: Path) -> Path:
    """Fetch the checkpoint from the store. Raises ConfigError if it is not there either."""
    settings = source.config.checkpoint
    newest = None
    if settings.store is not None:
        store = open_store(settings.store, source.run.run_id, settings.keep)
        newest = store.newest()
        if newest is not None and step in (None, step_of(newest)):
            return store.fetch(newest, directory)
    if step is not None and kept:
        allowed = ", ".join(map(str, kept))
        raise ConfigError("--step", str(step), allowed, "only these checkpoints were kept (checkpoint.keep)")
    hint = f"there is none in {source.run.checkpoints}; checkpoint.every sets how often one is written"
    raise ConfigError("run", source.run.run_id, "a run with a checkpoint", hint)


def _verify(checkpoint: Path) -> None:
    try:
        verify(checkpoint)
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error


@contextlib.contextmanager
def _written_atomically(target: Path) -> Generator[Path]:
    """A temporary folder that becomes `target` if the body succeeds, and is deleted if it fails.

    Raises OrchestratorError if it can't be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise OrchestratorError(f"Cannot write {target}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _lineage(source: _Source) -> tuple[list[str], Origin]:
    """The runs that trained this model, newest first, and the model from which the oldest one started."""
    runs, config = [source.run.run_id], source.config
    while config.model.path is not None:
        parent = RunDirectory(Path(config.model.path).parent)
        if parent.run_id in runs or not parent.state.is_file() or not parent.config.is_file():
            break
        runs.append(parent.run_id)
        config = configs.load_to_read(parent.config)
    return runs, origin_of(config.model)


def _heldout(run: RunDirectory, step: int) -> tuple[int, float] | None:
    found = [
        (line.step, line.metrics["accuracy/heldout"])
        for line in run.read_metrics()
        if line.step <= step and "accuracy/heldout" in line.metrics
    ]
    return found[-1] if found else None


def _cost(source: _Source) -> str | None:
    cost = run_report.cost(source.run, source.config)
    if cost is None:
        return None
    return f"{cost['amount']} {cost['currency']} for {cost['accelerator_hours']} accelerator-hours, all steps"


def _manifest(run: RunDirectory) -> dict[str, Any]:
    """The run's manifest; empty if it is missing or unreadable."""
    try:
        return json.loads(run.manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _value(values: dict[str, Any], key: str) -> Any:  # noqa: ANN401
    for part in key.split("."):
        values = values[part]
    return values
