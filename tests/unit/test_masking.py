"""The password in `ledger.url` and the path of `budget.webhook` only exist in the process that uses them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.cli import start
from orchestrator.config import compose as config
from orchestrator.errors import ConfigError
from orchestrator.launch.checks import check_secrets
from orchestrator.launch.webhook import post
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.sql.engine import open_engine
from orchestrator.masking import mask, mask_value, masked_keys
from orchestrator.training.telemetry.tracker import flatten

PASSWORD = "s3cr:et/%40"
URL = f"postgresql://ann:{PASSWORD}@db.example:5432/ledger?sslmode=require"
SHOWN = "postgresql://ann:***@db.example:5432/ledger?sslmode=require"
HOOK = "https://hooks.slack.com/services/T0/B0/s3cr3t"
HOOK_SHOWN = "https://hooks.slack.com/***"


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
        (f"budget.webhook={HOOK}", f"budget.webhook={HOOK_SHOWN}"),
        (f"budget.webhook='{HOOK}?x=s3cr3t', steps=3", f"budget.webhook='{HOOK_SHOWN}', steps=3"),
        (f"+budget.webhook={HOOK} adds it", f"+budget.webhook={HOOK_SHOWN} adds it"),
        (f"--webhook={HOOK}", f"--webhook={HOOK_SHOWN}"),
        ("budget.webhook=http://10.0.0.7:9000", "budget.webhook=http://10.0.0.7:9000"),
        (f"budget.webhok={HOOK}", f"budget.webhok={HOOK_SHOWN}"),
        ("https://discord.com/api/webhooks/7/s3cr3t", "https://discord.com/***"),
        ("https://example.org/services/T0/B0", "https://example.org/services/T0/B0"),
    ],
)
def test_only_passwords_are_masked(text: str, shown: str) -> None:
    assert mask(text) == shown
    assert mask(shown) == shown


@pytest.mark.slow
def test_passwords_are_neither_written_nor_shown(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_resumed_run_gets_the_password_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORCHESTRATOR_LEDGER_URL", raising=False)
    composed = config.compose("grpo", [f"ledger.url='{URL}'"])
    check_secrets(composed)
    written = tmp_path / "config.yaml"
    written.write_text(composed.to_yaml())
    loaded = config.load(written)
    assert list(masked_keys(loaded.to_json())) == [("ledger.url", SHOWN)]
    with pytest.raises(ConfigError, match=r"ledger.url: got .*ann:\*\*\*@.*ORCHESTRATOR_LEDGER_URL"):
        check_secrets(loaded)
    again = config.with_resume_overrides(loaded, [f"ledger.url='{URL}'"])
    assert again == composed
    assert config.with_resume_overrides(again, ["budget.limit=5"]).ledger.url == URL
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", URL)
    assert config.load(written) == composed


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (HOOK, HOOK_SHOWN),
        (HOOK_SHOWN, HOOK_SHOWN),
        ("https://ann:s3cr3t@hooks.example:8443/s3cr3t?key=s3cr3t", "https://ann:***@hooks.example:8443/***"),
        ("https://hooks.example?s3cr3t", "https://hooks.example/***"),
        ("hooks.slack.com/services/s3cr3t", "hooks.slack.com/***"),
        ("https://hooks.example/", "https://hooks.example/"),
    ],
)
def test_only_the_server_of_a_webhook_is_shown(url: str, shown: str) -> None:
    assert mask_value("budget.webhook", url) == shown
    assert mask_value("--webhook", url) == shown


@pytest.mark.slow
def test_a_webhook_is_written_and_shown_without_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    for job in ("grpo", "r1_demo"):
        composed = config.compose(job, [f"budget.webhook={HOOK}"])
        assert composed.budget.webhook == HOOK
        assert yaml.safe_load(composed.to_yaml())["budget"]["webhook"] == HOOK_SHOWN
        assert flatten(composed.to_json())["budget.webhook"] == HOOK_SHOWN
        for as_json in (False, True):
            start.print_config(job, [f"budget.webhook={HOOK}"], None, as_json)
            assert HOOK_SHOWN in capsys.readouterr().out
        assert "s3cr3t" not in composed.to_yaml() + str(composed.to_json())
        for stage in composed.stages:
            assert config.compose_stage(stage).budget.webhook == HOOK


@pytest.mark.parametrize(
    "overrides",
    [
        ["budget.webhook=hooks.slack.com/services/s3cr3t"],
        [f"budget.webhok={HOOK}"],
        [f"budget.webhook={HOOK}", "no_such_group=1"],
        [f"budget.webhook={HOOK}", "steps=${nowhere}"],
        [f"budget.webhook='{HOOK} s3cr3t'"],
    ],
)
def test_config_errors_do_not_reveal_the_webhook(overrides: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.compose("grpo", overrides)
    assert "s3cr3t" not in f"{caught.value} {caught.value.args}"


def test_a_resumed_run_gets_the_webhook_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRATOR_BUDGET_WEBHOOK", raising=False)
    composed = config.compose("grpo", [f"budget.webhook={HOOK}"])
    check_secrets(composed)
    written = tmp_path / "config.yaml"
    written.write_text(composed.to_yaml())
    with pytest.raises(ConfigError, match=r"budget.webhook=URL, or set ORCHESTRATOR_BUDGET_WEBHOOK"):
        check_secrets(config.load(written))
    assert config.with_resume_overrides(config.load(written), [f"budget.webhook={HOOK}"]) == composed
    assert config.with_resume_overrides(config.load(written), ["budget.webhook=null"]).budget.webhook is None
    monkeypatch.setenv("ORCHESTRATOR_BUDGET_WEBHOOK", HOOK)
    assert config.load(written) == composed


@pytest.mark.slow
def test_a_stage_that_was_not_started_gets_the_webhook_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tmp_path / "config.yaml"
    written.write_text(config.compose("r1_demo", [f"budget.webhook={HOOK}"]).to_yaml())
    stage = config.load(written).stages[-1]
    with pytest.raises(ConfigError, match=r"budget\.webhook"):
        check_secrets(config.compose_stage(stage))
    resumed = config.with_resume_overrides(config.load(written), [f"budget.webhook={HOOK}"])
    check_secrets(config.compose_stage(resumed.stages[-1]))
    monkeypatch.setenv("ORCHESTRATOR_BUDGET_WEBHOOK", HOOK)
    check_secrets(config.compose_stage(stage))


@pytest.mark.parametrize("path", ["s3cr3t with blanks", "s3cr3t-\u00fc"])
def test_an_unreachable_webhook_is_not_revealed(path: str) -> None:
    with pytest.raises(OSError, match="invalid URL or no HTTP server") as caught:
        post(f"http://127.0.0.1:1/{path}", {})
    assert "s3cr3t" not in str(caught.value) and caught.value.__suppress_context__


@pytest.mark.parametrize("url", [f"mysql://ann:{PASSWORD}@db/x", "postgresql://ann:s3cret@db:port/x"])
def test_a_ledger_that_cannot_be_opened_is_reported_without_its_password(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        open_engine(url)
    assert PASSWORD not in str(caught.value) and "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
