"""The heat map: averages, drawing, and its place in the report."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from orchestrator.console.heat_map import (
    MOST_COLUMNS,
    MOST_LAYERS,
    MOST_ROWS,
    SCALE,
    columns,
    heat_panels,
    rows,
    scale,
    strength,
)
from orchestrator.runs.directory import RunDirectory
from orchestrator.training.records import ExpertLoad


def cells(svg: str) -> list[ElementTree.Element]:
    return [element for element in ElementTree.fromstring(svg) if element.get("class") == "load"]


def test_loads_are_multiples_of_the_mean_and_darker_is_busier() -> None:
    (panel,) = heat_panels({1: [(1, [0.75, 0.25]), (2, [0.5, 0.5])]})
    assert [float(cell.get("fill-opacity", "nan")) for cell in cells(panel.svg)] == pytest.approx(
        [strength(1.5), strength(0.5), strength(1.0), strength(1.0)], abs=1e-3
    )
    assert panel.busiest == 1.0
    assert cells(panel.svg)[0].findtext("title") == "expert 0, step 1: 1.50"


def test_many_steps_are_averaged_and_many_experts_show_their_busiest() -> None:
    series = [(step, [1.0, 0.0] if step % 2 else [0.0, 1.0]) for step in range(1, 2 * MOST_COLUMNS + 1)]
    found = columns(series)
    assert len(found) == MOST_COLUMNS
    assert found[0] == (1, 2, [1.0, 1.0])
    assert rows([0.0] * 255 + [9.0])[-1] == 9.0
    assert len(rows([1.0] * 256)) == MOST_ROWS


def test_the_first_and_last_of_many_layers_are_shown() -> None:
    panels = heat_panels({layer: [(1, [0.5, 0.5])] for layer in range(3, 61)})
    assert len(panels) == MOST_LAYERS
    assert (panels[0].layer, panels[-1].layer) == (3, 60)


def test_the_scale_has_every_level() -> None:
    assert len(cells(scale())) == len(SCALE)


def test_loads_are_stored_per_step_and_dropped_with_their_steps(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step, share in ((1, 0.5), (2, 0.61234), (2, 0.75)):
        run.append_routing(step, [ExpertLoad(4, (share, 1 - share))])
    assert run.read_routing() == {4: {1: [0.5, 0.5], 2: [0.75, 0.25]}}
    run.drop_metrics_after(1)
    assert run.read_routing() == {4: {1: [0.5, 0.5]}}
