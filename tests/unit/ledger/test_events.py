"""The wire format: emitted events are parsed, and malformed ones are rejected with their field."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.errors import MalformedEventError
from orchestrator.ledger.events import (
    EVENT_TYPES,
    Correction,
    SpanRecorded,
    UsageStated,
    event_from_json,
    event_to_json,
    parse_event,
    span_line,
)
from orchestrator.training import usage

EMITTED: list[usage.UsageEvent] = [
    usage.RunDeclared("1", 5, "r", 1, "grpo", "debug", "o", "", "t", "x", "", ""),
    usage.LeaseOpened("2", 5, "l", "r", 1, "cpu", "cpu-slot", "n", "pg", 0),
    usage.LeaseClosed("3", 5, "l", usage.CloseReason.LOST),
    usage.Heartbeat("4", 5, "l"),
    usage.SpanRecorded("5", "l", "w", usage.Role.ROLLOUT, usage.Activity.GENERATE, 5, 6, 0, 9),
]


def span(**changed: object) -> dict[str, Any]:
    fields = json.loads(usage.event_to_json(EMITTED[-1]))
    return {**fields, **changed}


@pytest.mark.parametrize("emitted", EMITTED, ids=lambda event: event.type)
def test_every_event_that_training_emits_is_understood_field_by_field(emitted: usage.UsageEvent):
    event = event_from_json(usage.event_to_json(emitted))
    assert type(event) is EVENT_TYPES[emitted.type]
    for name in emitted.__slots__:
        assert getattr(event, name) == getattr(emitted, name)
    assert event_from_json(event_to_json(event)) == event


def test_every_event_survives_its_own_json():
    stated = UsageStated("6", "r", "gpu", "h800", str(2**70), 0, 9, "2.00", "USD", "DeepSeek-V3, table 1")
    fix = Correction("7", 5, "5", "clock was off", event_to_json(stated))
    for event in (stated, fix):
        assert event_from_json(event_to_json(event)) == event


WORDS = st.one_of(st.sampled_from(["idle", "lost", "update", ""]), st.text(max_size=6))
NUMBERS = st.one_of(st.integers(0, 9), st.integers(2**63 - 2, 2**63 + 1), st.integers(-1, 2**65))


@given(st.tuples(WORDS, WORDS, WORDS, WORDS, WORDS), st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), WORDS)
def test_the_fast_path_reads_spans_like_the_json_parser(
    words: tuple[str, ...], numbers: tuple[int, ...], run_id: str
):
    """For any content of its fields; and lines that the parser rejects do not take the fast path."""
    line = event_to_json(SpanRecorded(*words, *numbers, run_id))  # type: ignore[arg-type]
    loose = line.replace('"schema":1,', '"schema": 1, ')
    assert span_line(loose) is None
    try:
        expected = event_from_json(loose)
    except MalformedEventError as error:
        assert span_line(line) is None
        with pytest.raises(MalformedEventError, match=re.escape(error.key)):
            event_from_json(line)
        return
    assert event_from_json(line) == expected
    short = span_line(line)
    if short is not None:
        assert isinstance(expected, SpanRecorded) and short.text == line
        names = ("event_id", "lease_id", "run_id", "type")
        assert [getattr(short, name) for name in names] == [getattr(expected, name) for name in names]


def test_spans_emitted_by_training_take_the_fast_path():
    assert span_line(usage.event_to_json(EMITTED[-1])) is not None


def test_unknown_keys_are_ignored_and_a_span_may_name_another_run():
    assert parse_event(span(colour="blue")) == parse_event(span())
    event = parse_event(span(run_id="r2"))
    assert isinstance(event, SpanRecorded) and event.run_id == "r2"


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"schema": 2}, "schema"),
        ({"schema": None}, "schema"),
        ({"type": "lease_stolen"}, "type"),
        ({"type": 3}, "type"),
        ({"event_id": ""}, "event_id"),
        ({"lease_id": None}, "lease_id"),
        ({"start_ns": 5.0}, "start_ns"),
        ({"start_ns": True}, "start_ns"),
        ({"end_ns": 2**63}, "end_ns"),
        ({"end_ns": 4}, "end_ns"),
        ({"activity": "idle"}, "activity"),
        ({"activity": "lost"}, "activity"),
        ({"tokens": "9"}, "tokens"),
    ],
)
def test_a_malformed_event_is_rejected_with_its_field(changed: dict[str, object], key: str):
    with pytest.raises(MalformedEventError) as caught:
        parse_event(span(**changed))
    assert caught.value.key == key


def test_a_missing_field_is_refused():
    fields = span()
    del fields["actor"]
    with pytest.raises(MalformedEventError, match="actor"):
        parse_event(fields)


@pytest.mark.parametrize("line", ["", "{", "[1]", "7", '{"schema":1} {}', "[" * 100_000, "null"])
def test_a_line_that_is_not_an_object_is_rejected(line: str):
    with pytest.raises(MalformedEventError, match="line"):
        event_from_json(line)


@pytest.mark.parametrize("sign", ["\\u0000", "\\ud800"])
def test_text_that_databases_cannot_store_is_rejected(sign: str):
    line = usage.event_to_json(EMITTED[-1]).replace('"w"', f'"w{sign}"')
    with pytest.raises(MalformedEventError, match="actor"):
        event_from_json(line)
    assert event_from_json(usage.event_to_json(EMITTED[-1]).replace('"w"', '"\\u00e9"')) != EMITTED[-1]


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"reason": "bored"}, "reason"),
        ({"type": "usage_stated", "accelerator_ns": "-1"}, "accelerator_ns"),
        ({"type": "usage_stated", "accelerator_ns": "1.5"}, "accelerator_ns"),
        ({"type": "usage_stated", "start_ns": 9}, "end_ns"),
        ({"type": "usage_stated", "unit_price": "two"}, "unit_price"),
        ({"type": "usage_stated", "unit_price": "2", "currency": ""}, "unit_price"),
        ({"type": "correction", "replacement": "{"}, "replacement"),
        ({"type": "correction", "replacement": event_to_json(Correction("9", 0, "1", ""))}, "replacement"),
    ],
)
def test_fields_of_single_event_types_are_checked(changed: dict[str, object], key: str):
    fields: dict[str, Any] = {
        "schema": 1,
        "type": "lease_closed",
        "event_id": "1",
        "at_ns": 0,
        "lease_id": "l",
        "reason": "lost",
        "run_id": "r",
        "resource": "gpu",
        "sku": "h",
        "accelerator_ns": "5",
        "start_ns": 1,
        "end_ns": 2,
        "unit_price": "",
        "currency": "",
        "source": "s",
        "corrects": "x",
        "replacement": "",
    }
    parse_event(fields)
    with pytest.raises(MalformedEventError) as caught:
        parse_event({**fields, **changed})
    assert caught.value.key == key
