"""Energy and CO2: hand-computed figures, those of a model card, and measurements of a meter."""

from __future__ import annotations

import json
import sys
import types
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run_command_line
from orchestrator.ledger.calendar import HOUR_NS
from orchestrator.ledger.carbon import EnergyModel, carbon
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import LeaseClosed, LeaseOpened, SpanRecorded, UsageStated
from orchestrator.ledger.grid import Grid
from orchestrator.ledger.labels import Labels
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.power import (
    FILE,
    Drawn,
    FakeMeter,
    MeterLostError,
    NvmlMeter,
    PowerLog,
    read_drawn,
)
from orchestrator.ledger.wrap import Held, run

AT = 20_000 * 24 * HOUR_NS
FLAT = Grid(Decimal(500))
PRICES: dict[str, Any] = {
    "name": "test",
    "currency": "USD",
    "region": "here",
    "commitment": "on_demand",
    "prices": [],
}


def lease(name: str, hours: int, worked: int, sku: str = "H100", region: str = "us-east-1") -> list[Any]:
    end = AT + hours * HOUR_NS
    return [
        LeaseOpened(f"o-{name}", AT, name, f"run-{name}", 1, "gpu", sku, "n", "", 0, region, "on_demand"),
        SpanRecorded(f"s-{name}", name, "w", "learner", "update", AT, AT + worked * HOUR_NS, 0, 0),
        LeaseClosed(f"c-{name}", end, name, "released"),
    ]


@pytest.fixture
def ledger() -> Ledger:
    book = Ledger.in_memory(PRICES)
    book.book([*lease("a", 10, 8), *lease("b", 4, 4, sku="cpu-slot", region="eu-central-2")])
    return book


def test_power_times_utilisation_times_hours_times_pue_times_grid(ledger: Ledger) -> None:
    model = EnergyModel(pue=Fraction(12, 10), work=Fraction(9, 10), idle=Fraction(1, 10))
    report = carbon(ledger, ["run"], FLAT, model)
    kwh_a = 1.2 * 0.7 * (8 * 0.9 + 2 * 0.1)
    kwh_b = 1.2 * 0.0035 * 4 * 0.9
    assert [(row.values, float(row.kwh)) for row in report.rows] == [
        (("run-a",), pytest.approx(kwh_a)),
        (("run-b",), pytest.approx(kwh_b)),
    ]
    assert float(report.total.kg_co2e) == pytest.approx((kwh_a + kwh_b) / 2)
    assert sum(row.kwh for row in report.rows) == report.total.kwh
    assert report.total.measured_kwh == 0


def test_a_model_card_is_reproduced() -> None:
    """Llama 3.1 (model card): 1.46M, 7.0M and 30.84M H100-hours at 700 W, 11,390 t CO2e in all."""
    ledger = Ledger.in_memory(PRICES)
    hours = {"8B": 1_460_000, "70B": 7_000_000, "405B": 30_840_000}
    ledger.book(
        [
            UsageStated(name, name, "gpu", "H100", str(h * HOUR_NS), AT, AT, "1", "USD", "model card")
            for name, h in hours.items()
        ]
    )
    report = carbon(ledger, ["run"], Grid(Decimal(414)), EnergyModel())
    published = {"8B": 420, "70B": 2_040, "405B": 8_930}
    for row in report.rows:
        assert float(row.kg_co2e) / 1000 == pytest.approx(published[str(row.values[0])], rel=0.01)
    assert float(report.total.kg_co2e) / 1000 == pytest.approx(11_390, rel=0.001)
    assert report.total.kwh == 27_510_000


def test_carbon_intensities_of_regions_come_from_the_library(ledger: Ledger) -> None:
    report = carbon(ledger, ["region"], Grid(), EnergyModel())
    assert set(report.intensities) == {"eu-central-2", "us-east-1"}
    swiss, american = (report.intensities[name] for name in ("eu-central-2", "us-east-1"))
    assert "Switzerland" in swiss.source
    assert 20 < swiss.grams_per_kwh < 60
    assert 300 < american.grams_per_kwh < 450


def test_an_unknown_grid_is_rejected() -> None:
    assert Grid(country="che").intensity("anywhere") == Grid().intensity("eu-central-2")
    assert Grid(Decimal(7), "CHE").intensity("").grams_per_kwh == 7
    assert "Google" in Grid().intensity("europe-west6").source
    for region in ("", "local", "mars-north-1"):
        with pytest.raises(LedgerError, match="region"):
            Grid().intensity(region)
    with pytest.raises(LedgerError, match="--country"):
        Grid(country="ATL")


def test_without_the_library_the_error_names_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon.input", None)
    with pytest.raises(LedgerError, match="carbon"):
        Grid(country="CHE")


def test_an_unknown_sku_needs_its_watts(ledger: Ledger) -> None:
    ledger.book(lease("c", 1, 1, sku="TPU-v9"))
    with pytest.raises(LedgerError, match="TPU-v9"):
        carbon(ledger, ["run"], FLAT, EnergyModel())
    model = EnergyModel(watts={"tpu-V9": Fraction(200), "h100": Fraction(350)})
    rows = {row.values[0]: row.kwh for row in carbon(ledger, ["run"], FLAT, model).rows}
    assert rows["run-c"] == Decimal("0.2")
    assert rows["run-a"] == Decimal("0.35") * 8 + Decimal("0.035") * 2


def test_measured_energy_counts_and_the_rest_is_modelled(ledger: Ledger) -> None:
    measured_mj = 2 * 3_600_000_000  # 2 kWh in half of the lease
    drawn = {"a": Drawn("a", 0, 5 * HOUR_NS, measured_mj)}
    report = carbon(ledger, ["lease", "activity"], FLAT, EnergyModel(idle=Fraction(0)), drawn)
    rows = {row.values: (row.kwh, row.measured_kwh) for row in report.rows}
    modelled = Decimal("0.7") * 8 / 2
    assert rows["a", "update"] == (Decimal("1.6") + modelled, Decimal("1.6"))
    assert rows["a", "idle"] == (Decimal("0.4"), Decimal("0.4"))
    assert rows["b", "update"][1] == 0


def test_a_wrapped_command_is_measured(tmp_path: Path) -> None:
    times = iter(range(10**18, 10**18 + 10**13, 10**9))
    code = run(
        [sys.executable, "-c", "import time; time.sleep(0.1)"],
        *(
            "w",
            Labels(purpose="final"),
            Held("gpu", "H100", 2, "n"),
            tmp_path / "w" / "ledger" / "wrap.jsonl",
        ),
        *(0.02, lambda: next(times), FakeMeter([400, 100])),
    )
    drawn = read_drawn([tmp_path / "w" / FILE])
    assert code == 0
    assert set(drawn) == {"w/1/0", "w/1/1"}
    seconds = (drawn["w/1/0"].end_ns - drawn["w/1/0"].start_ns) // 10**9
    assert [drawn[name].millijoules // 1000 // seconds for name in sorted(drawn)] == [400, 100]


class Failing:
    """A meter that responds once."""

    def __init__(self) -> None:
        self._reads = 0

    def millijoules(self) -> list[int]:
        self._reads += 1
        if self._reads > 1:
            raise MeterLostError("GPU is lost")
        return [5]


def test_a_lost_meter_only_ends_the_power_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = PowerLog(Failing(), ["w/1/0"], tmp_path / FILE, 0)
    log.beat(1)
    log.beat(2)
    assert not (tmp_path / FILE).exists()
    assert [record.message for record in caplog.records] == ["power is no longer measured: GPU is lost"]


def test_a_bad_line_of_a_power_log_is_named(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text('{"lease_id": "a", "start_ns": 0, "end_ns": 5, "millijoules": 7}\n{"lease_id": "a"}\n')
    with pytest.raises(LedgerError, match=f"{FILE}:2"):
        read_drawn([file])


class FakeNvml(types.ModuleType):
    """Two GPUs, the second of which has no energy counter."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 1:
            raise self.NVMLError
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        return {"GPU-a": 0, "GPU-b": 1}[name]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if handle:
            raise self.NVMLError("not supported")
        return 12_345


@pytest.mark.parametrize(
    ("visible", "count", "found"),
    [
        ("0", 1, True),
        ("", 1, True),
        ("GPU-a,GPU-b", 1, True),
        ("1", 1, False),
        ("7", 1, False),
        ("0", 2, False),
    ],
)
def test_nvml_is_used_if_it_has_counters_for_all_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: int, found: bool
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    meter = NvmlMeter.of(visible, count)
    assert (meter is not None) is found
    if meter is not None:
        assert list(meter.millijoules()) == [12_345]


def test_without_nvml_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert NvmlMeter.of("0", 1) is None


def test_the_command_prints_totals_and_assumptions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--output-dir", str(tmp_path)]
    account = Path(__file__).parents[3] / "docs" / "examples" / "accounts" / "olmo-3-think-32b.csv"
    assert run_command_line(["cost", "import", "csv", str(account), *where]) == 0
    capsys.readouterr()
    words = ["cost", "carbon", "--by", "stage", "--country", "USA", "--pue", "1.2", *where]
    assert run_command_line([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["total"]["kwh"] == f"{1_376_256 * Decimal('0.7') * Decimal('1.2'):.6f}"
    assert sum(Decimal(row["kg_co2e"]) for row in document["rows"]) == Decimal(document["total"]["kg_co2e"])
    assert document["assumptions"]["pue"] == "1.2"
    assert run_command_line(words) == 0
    assert "PUE 1.2" in capsys.readouterr().out
    assert run_command_line(["cost", "carbon", *where]) == 2
    assert run_command_line([*words, "--pue", "0.5"]) == 2
