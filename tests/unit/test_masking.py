"""A password in `ledger.url` is nowhere but in the process that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator import config
from orchestrator.cli import start
from orchestrator.cli.assembly import check_passwords
from orchestrator.errors import ConfigError
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.sql.engine import open_engine
from orchestrator.masking import mask, masked_keys
from orchestrator.training.telemetry.tracker import flatten

PASSWORD = "s3cr:et/%40"
URL = f"postgresql://ann:{PASSWORD}@db.example:5432/ledger?sslmode=require"
SHOWN = "postgresql://ann:***@db.example:5432/ledger?sslmode=require"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (URL, SHOWN),
        (f"ledger.url={URL}", f"ledger.url={SHOWN}"),
        ("postgresql://db/ledger?user=a&password=hush&x=1", "postgresql://db/ledger?user=a&password=***&x=1"),
        ("sqlite:////tmp/a:b@c/ledger.db", "sqlite:////tmp/a:b@c/ledger.db"),
        ("https://example.org/a:b", "https://example.org/a:b"),
        ("postgresql://ann@db/ledger", "postgresql://ann@db/ledger"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
    ],
)
def test_only_passwords_are_masked(text: str, shown: str) -> None:
    assert mask(text) == shown
    assert mask(shown) == shown


def test_what_is_written_and_shown_has_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    for job in ("grpo", "r1_demo"):
        composed = config.compose(job, [f"ledger.url='{URL}'"])
        assert composed.ledger.url == URL
        assert PASSWORD not in composed.to_yaml()
        assert yaml.safe_load(composed.to_yaml())["ledger"]["url"] == SHOWN
        assert not [value for value in flatten(composed.to_json()).values() if PASSWORD in value]
        for as_json in (False, True):
            start.print_config(job, [f"ledger.url='{URL}'"], None, as_json)
            printed = capsys.readouterr().out
            assert PASSWORD not in printed and "ann:***@" in printed


def test_a_resumed_run_is_told_the_password_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRATOR_LEDGER_URL", raising=False)
    composed = config.compose("grpo", [f"ledger.url='{URL}'"])
    check_passwords(composed)
    written = tmp_path / "config.yaml"
    written.write_text(composed.to_yaml())
    loaded = config.load(written)
    assert list(masked_keys(loaded.to_json())) == [("ledger.url", SHOWN)]
    with pytest.raises(ConfigError, match=r"ledger.url: got .*ann:\*\*\*@.*ORCHESTRATOR_LEDGER_URL"):
        check_passwords(loaded)
    again = config.with_resume_overrides(loaded, [f"ledger.url='{URL}'"])
    assert again == composed
    assert config.with_resume_overrides(again, ["budget.limit=5"]).ledger.url == URL
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", URL)
    assert config.load(written) == composed


@pytest.mark.parametrize("url", [f"mysql://ann:{PASSWORD}@db/x", "postgresql://ann:s3cret@db:port/x"])
def test_a_ledger_that_can_not_be_opened_is_named_without_its_password(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        open_engine(url)
    assert PASSWORD not in str(caught.value) and "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
