"""The model card of an exported model: a README.md in the format of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from orchestrator.percent import percent
from orchestrator.training.models.origin import Origin


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Contents of the model card. `lineage` holds the ids of the runs that
    trained the model, newest first.
    """

    run_id: str
    job: str
    step: int
    origin: Origin
    lineage: Sequence[str]
    parameters: int
    dtype: str
    task: str
    data_sha256: Mapping[str, str]
    settings: Mapping[str, Any]
    """Config keys that affect training, with their values."""
    heldout: tuple[int, float] | None
    """(step, accuracy) of the newest evaluation up to the step."""
    cost: str | None


def model_card(facts: CardFacts) -> str:
    """Render the card. Unknown values are stated as unknown."""
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": _licence_id(facts.origin.licence),
        **({} if facts.origin.hub_id is None else {"base_model": facts.origin.hub_id}),
        "tags": ["reinforcement-learning", facts.job],
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {facts.origin.name}, {facts.job}, step {facts.step}",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in _rows(facts)),
        "",
        "## How it was trained",
        "",
        "| key | value |",
        "| --- | --- |",
        *(f"| `{key}` | `{value}` |" for key, value in facts.settings.items()),
        "",
        "`provenance.json` has the digests of the checkpoint, the data, the config and every file here.",
        "",
        "## How to load it",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("this folder")',
        'tokenizer = AutoTokenizer.from_pretrained("this folder")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _rows(facts: CardFacts) -> list[tuple[str, str]]:
    origin = facts.origin
    base = "none: random start" if origin.kind == "from scratch" else _with_source(origin)
    scratch = "unspecified: the model was trained from scratch, so its makers decide"
    licence = origin.licence or (
        scratch if origin.kind == "from scratch" else "unspecified by the base model"
    )
    accuracy = "not evaluated"
    if facts.heldout is not None:
        step, share = facts.heldout
        accuracy = f"{percent(share)} on task `{facts.task}` (after step {step}, greedy)"
    data = ", ".join(f"{name} sha256:{digest[:16]}" for name, digest in facts.data_sha256.items())
    return [
        ("base model", base),
        ("licence", licence),
        ("run", f"`{facts.run_id}`"),
        ("trained by", " after ".join(f"`{run_id}`" for run_id in facts.lineage)),
        ("parameters", f"{facts.parameters:,} ({facts.dtype})"),
        ("data", f"task `{facts.task}`, {data or 'digest unknown'}"),
        ("held-out accuracy", accuracy),
        ("cost", facts.cost or "not in the ledger"),
    ]


def _with_source(origin: Origin) -> str:
    return f"{origin.name} (package {origin.where})" if origin.kind == "package" else origin.name


def _licence_id(licence: str | None) -> str:
    """Return the hub's identifier of a licence; `other` if there is none."""
    return "other" if licence is None else licence.lower().replace(" ", "-")
