"""Connecting to a cluster: which token is used, and what errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray._private.authentication import authentication_token_setup

from orchestrator.config.compose import compose
from orchestrator.training.cluster import session
from orchestrator.training.cluster.authentication import token_source, use_token
from orchestrator.training.cluster.session import ClusterError, ray_session


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home directory without a token, and an environment without authentication settings."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records calls of Ray's function that enables token authentication."""
    calls: list[str] = []

    def enable(warn_if_disabled: bool = True) -> bool:
        calls.append("enabled")
        return True

    monkeypatch.setattr(authentication_token_setup, "maybe_enable_token_auth_if_token_available", enable)
    return calls


def _write_token(home: Path) -> Path:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("secret")
    return path


def test_a_token_in_the_home_directory_is_used(home: Path, enabled: list[str]) -> None:
    assert token_source() is None
    use_token()
    assert enabled == []
    path = _write_token(home)
    assert token_source() == str(path)
    use_token()
    assert enabled == ["enabled"]


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_an_explicit_mode_is_kept(
    mode: str, home: Path, enabled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_token(home)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    use_token()
    assert enabled == []


def test_environment_variables_select_other_tokens(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = home / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert token_source() is None
    other.write_text("secret")
    assert token_source() == str(other)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert token_source() == "RAY_AUTH_TOKEN"


def _failure(monkeypatch: pytest.MonkeyPatch, address: str | None, error: Exception) -> str:
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr(session.ray, "init", init)
    config = compose("grpo", ["tracking=none"]).cluster.model_copy(update={"address": address})
    with pytest.raises(ClusterError) as caught, ray_session(config, 1):
        pass
    return str(caught.value)


REFUSED = ConnectionError("Failed to connect to Ray cluster at 10.0.0.5:6379\nwith more lines")


@pytest.mark.usefixtures("enabled")
def test_without_a_token_the_error_names_the_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = _failure(monkeypatch, "10.0.0.5:6379", REFUSED)
    assert text.startswith("Cannot connect to Ray at 10.0.0.5:6379: Failed to connect to Ray cluster at 10.")
    assert "copy ~/.ray/auth_token from its head node" in text
    assert "RAY_AUTH_TOKEN_PATH" in text
    assert "with more lines" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("enabled")
def test_with_a_token_the_error_names_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write_token(home)
    assert f"The token from {path} was used" in _failure(monkeypatch, "auto", REFUSED)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "unset RAY_AUTH_MODE=disabled" in _failure(monkeypatch, "auto", REFUSED)


def test_a_local_start_ignores_tokens(
    home: Path, enabled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_token(home)
    text = _failure(monkeypatch, None, RuntimeError("the node did not start."))
    assert text == "Cannot start Ray on this machine: the node did not start."
    assert enabled == []


def test_a_path_that_is_too_long_for_sockets_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /tmp/...")
    assert "set RAY_TMPDIR to a shorter path" in _failure(monkeypatch, None, error)
