"""The results of the mart with DuckDB equal those derived in plain Python, after each update."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.ledger import mart as marts
from orchestrator.ledger.calendar import DAY_NS, HOUR_NS
from orchestrator.ledger.derive import lines_from_events
from orchestrator.ledger.events import Event, LeaseClosed, LeaseOpened, SpanRecorded, UsageStated
from orchestrator.ledger.journal import MemoryJournal
from orchestrator.ledger.lines import LineKey, Lines, keep_fields
from orchestrator.ledger.mart import Mart
from tests.fakes.random_ledgers import MIDNIGHT, POLICY, ledgers

LATER = MIDNIGHT + DAY_NS
LATEST = MIDNIGHT + 150
"""No lease of `ledgers` has an event after this time."""
FIELDS = sorted(LineKey._fields)


def journal_of(events: list[Event]) -> MemoryJournal:
    journal = MemoryJournal(lambda: LATER)
    journal.append(events)
    return journal


def nonzero(lines: Lines) -> Lines:
    return {key: ns for key, ns in lines.items() if ns}


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    ledgers(),
    st.lists(st.integers(0, 30), max_size=3),
    st.sampled_from(((), ("team",), ("run_id", "role"), tuple(FIELDS))),
    st.integers(60, 200),
)
def test_the_mart_equals_the_derivation_in_plain_python(
    events: list[Event], arrivals: list[int], keep: tuple[str, ...], later: int
):
    journal = MemoryJournal(lambda: LATER)
    with tempfile.TemporaryDirectory() as folder:
        mart = Mart(Path(folder), journal, POLICY, worthwhile_events=0)
        cuts = [0, *sorted(min(place, len(events)) for place in arrivals), len(events)]
        for place, last in enumerate(cuts[1:]):
            journal.append(events[cuts[place] : last])
            as_of = MIDNIGHT + later + place
            known = [row.event for row in journal.events()]
            found = mart.lines(as_of, keep)
            assert found is not None or as_of < LATEST
            if found is not None:
                assert found[0] == journal.head()
                assert nonzero(found[1]) == nonzero(
                    keep_fields(lines_from_events(known, as_of, POLICY), keep)
                )


def a_lease(lease: str, start: int, spans: int) -> list[Event]:
    opened = LeaseOpened(f"o-{lease}", start, lease, "r", 1, "gpu", "h100", "n", "pg", 0)
    made: list[Event] = [opened]
    for place in range(spans):
        begin = start + 10 * place
        made.append(
            SpanRecorded(f"s-{lease}-{place}", lease, "w", "rollout", "generate", begin, begin + 9, 0, 1)
        )
    return made


def test_an_interrupted_deleted_or_foreign_mart_is_rebuilt(tmp_path: Path):
    journal = journal_of(a_lease("a", MIDNIGHT, 5))
    expected = lines_from_events([row.event for row in journal.events()], LATER, POLICY)
    mart = Mart(tmp_path, journal, POLICY, worthwhile_events=0)
    assert mart.lines(LATER, FIELDS) == (6, expected)
    (tmp_path / "index.json").unlink()
    assert mart.lines(LATER, FIELDS) == (6, expected)
    other = journal_of(a_lease("b", MIDNIGHT, 2))
    found = Mart(tmp_path, other, POLICY, worthwhile_events=0).lines(LATER, FIELDS)
    assert found == (3, lines_from_events([row.event for row in other.events()], LATER, POLICY))


def test_a_mart_of_another_version_is_rebuilt(tmp_path: Path):
    journal = journal_of(a_lease("a", MIDNIGHT, 5))
    mart = Mart(tmp_path, journal, POLICY, worthwhile_events=0)
    expected = mart.lines(LATER, FIELDS)
    index = json.loads((tmp_path / "index.json").read_text())
    index["made_from"]["format"] += 1
    (tmp_path / "index.json").write_text(json.dumps(index | {"of_another_version": 1}))
    assert Mart(tmp_path, journal, POLICY, worthwhile_events=0).lines(LATER, FIELDS) == expected


@pytest.mark.slow
def test_many_or_mostly_stale_parts_are_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(marts, "MAX_PARTS", 3)
    journal = MemoryJournal(lambda: LATER)
    mart = Mart(tmp_path, journal, POLICY, worthwhile_events=0)
    for number in range(6):
        journal.append(a_lease(f"lease-{number}", MIDNIGHT, 3))
        mart.lines(LATER, ())
    for place in range(4):
        journal.append(
            [
                SpanRecorded(
                    f"late-{place}",
                    "lease-0",
                    "w",
                    "rollout",
                    "sync",
                    MIDNIGHT + 100 + place,
                    MIDNIGHT + 101 + place,
                    0,
                    0,
                )
            ]
        )
        found = mart.lines(LATER, FIELDS)
        assert found == (
            journal.head(),
            lines_from_events([row.event for row in journal.events()], LATER, POLICY),
        )
    assert len(list(tmp_path.glob("[0-9]*.parquet"))) <= 3


def test_the_mart_does_not_answer_for_times_before_its_last_event(tmp_path: Path):
    journal = journal_of([*a_lease("a", MIDNIGHT, 1), LeaseClosed("c", MIDNIGHT + 50, "a", "released")])
    mart = Mart(tmp_path, journal, POLICY, worthwhile_events=0)
    assert mart.lines(MIDNIGHT + 49, ()) is None
    assert mart.lines(MIDNIGHT + 50, ()) is not None


@pytest.mark.slow
def test_sums_hold_past_64_bits(tmp_path: Path):
    """Two leases of 150 years, which exceed 64 bits, and 40 million stated accelerator-hours."""
    length = 54_000 * DAY_NS
    assert length < 2**63 < 2 * length
    events: list[Event] = []
    for number in range(2):
        events += [
            LeaseOpened(f"o{number}", 0, f"l{number}", "r", 1, "gpu", "h100", "n", "pg", number),
            LeaseClosed(f"c{number}", length + 1, f"l{number}", "released"),
        ]
    quantity = 40_000_000 * HOUR_NS + 1
    events.append(UsageStated("s", "r", "gpu", "h100", str(quantity), 0, 1, "", "", "a table"))
    found = Mart(tmp_path, journal_of(events), POLICY, worthwhile_events=0).lines(length + 1, ())
    assert found is not None
    assert sum(found[1].values()) == 2 * (length + 1) + quantity
