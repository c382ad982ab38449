from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def install() -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "requirements" / "install.py"
    spec = importlib.util.spec_from_file_location("requirements_install", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_of_pip_reach_uv(install: ModuleType) -> None:
    lines = [
        "global.cert='/etc/ssl/certs/ca.crt'",
        "global.index-url='https://mirror.example/simple'",
        "global.find-links='/wheels\\n/others'",
        "global.timeout='60'",
        "global.disable-pip-version-check='1'",
    ]
    assert install.uv_settings(lines, {}) == {
        "SSL_CERT_FILE": "/etc/ssl/certs/ca.crt",
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_FIND_LINKS": "/wheels,/others",
        "UV_HTTP_TIMEOUT": "60",
    }


def test_every_index_is_searched_for_every_package_as_pip_does(install: ModuleType) -> None:
    settings = install.uv_settings(["global.extra-index-url='https://a/simple\\nhttps://b/simple'"], {})
    assert settings["UV_INDEX"] == "https://a/simple https://b/simple"
    assert settings["UV_INDEX_STRATEGY"] == "unsafe-best-match"


@pytest.mark.parametrize("reverse", [False, True])
def test_settings_have_the_order_environment_install_section_global(
    install: ModuleType, reverse: bool
) -> None:
    lines = ["global.timeout='1'", "install.timeout='2'", ":env:.timeout='3'"]
    for count in (1, 2, 3):
        shown = lines[:count][::-1] if reverse else lines[:count]
        assert install.uv_settings(shown, {})["UV_HTTP_TIMEOUT"] == str(count)


def test_existing_variables_of_uv_have_precedence(install: ModuleType) -> None:
    assert install.uv_settings(["global.timeout='1'"], {"UV_HTTP_TIMEOUT": "9", "HOME": "/root"}) == {
        "UV_HTTP_TIMEOUT": "9",
        "HOME": "/root",
    }


def test_requirements_leave_out_comments(install: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "pins.txt"
    file.write_text("# a comment\n\na==1  # another\nb==2\n")
    assert list(install.requirements(file)) == ["a==1", "b==2"]


def test_installed_packages_are_counted(install: ModuleType, tmp_path: Path) -> None:
    about = tmp_path / "a-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: a\nVersion: 1\n")
    (about / "RECORD").write_text("a.py,,\na-1.dist-info/METADATA,,\ngone.py,,\n")
    (tmp_path / "a.py").write_bytes(b"#" * 2_000_000)
    count, megabytes = install.installed([str(tmp_path)])
    assert count == 1
    assert megabytes == pytest.approx(2.0, rel=1e-3)
