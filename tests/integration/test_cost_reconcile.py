"""Reconciles a bill on S3 with a ledger, through the command."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from orchestrator.cli.app import run_command_line

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "bill"

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="bills")
        client.upload_file(str(EXAMPLES / "cur.parquet"), "bills", "cur/BILLING_PERIOD=2026-10/cur-1.parquet")
        client.put_object(Bucket="bills", Key="cur/manifest.json", Body=b"{}")
        yield "s3://bills/cur"


def test_a_bill_on_s3_is_reconciled_and_signed(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--output-dir", str(tmp_path)]
    signed = tmp_path / "signed.json"
    for command in (
        ["prices", "adopt", "aws"],
        ["import", "slurm", str(EXAMPLES / "sacct.txt"), "--sku", "h100=p5.48xlarge"],
    ):
        assert run_command_line(["cost", *command, *where]) == 0
    capsys.readouterr()
    words = ["cost", "reconcile", "--cur", bucket, "--nodes", str(EXAMPLES / "nodes.csv"), "--json", *where]
    assert run_command_line(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert {kind: number for kind, number in document["counts"].items() if number} == {
        "billed_not_leased": 1,
        "hours_differ": 1,
        "price_differs": 1,
    }
    sign = ["--sign-off", "Ada", "--out", str(signed)]
    assert run_command_line([*words, *sign]) == 2, "differences need a note"
    capsys.readouterr()
    assert run_command_line([*words, *sign, "--note", "i-0c was forgotten"]) == 0
    capsys.readouterr()
    assert json.loads(signed.read_text())["signed"]["by"] == "Ada"
    headline = ["cost", "headline", "alps/101", "--reconciled", str(signed), "--json", *where]
    assert run_command_line(headline) == 0
    lines = json.loads(capsys.readouterr().out)["lines"]
    assert [line["state"] for line in lines] == ["recorded", "unexplained"]


@pytest.mark.parametrize("source", ["s3://bills/nothing", "s3://no-such-bucket/cur"])
def test_a_missing_bill_is_a_usage_error(
    bucket: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cost", "reconcile", "--cur", source, "--output-dir", str(tmp_path), "--json"]
    assert run_command_line(words) == 2
    assert json.loads(capsys.readouterr().out)["value"] == source
