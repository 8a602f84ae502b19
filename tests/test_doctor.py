"""`harness doctor`: what is there, what is missing for what, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import bootstrap, doctor
from harness.cli import main as command_line
from harness.doctor import Check


@pytest.fixture(autouse=True)
def _a_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One with everything that runs need and nothing more: no Docker, no AWS, no Neuron device."""
    monkeypatch.setattr(bootstrap, "is_set_up", lambda name: name in ("harness", "train", "serve"))
    monkeypatch.setattr(bootstrap, "prerequisites", lambda _: [])
    monkeypatch.setattr(doctor, "CACHE", tmp_path)
    (tmp_path / "djl" / "x").mkdir(parents=True)
    (tmp_path / "djl" / "x" / "djl-serving").touch()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "XDG_CONFIG_HOME", "WHEELS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))


def found(root: Path = Path("/nowhere")) -> dict[str, Check]:
    return {check.name: check for check in doctor.look(root)}


def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """(exit code, standard output) of the verb."""
    monkeypatch.setattr("sys.argv", ["harness", "doctor", *words])
    monkeypatch.setattr("harness.interrupts.install", lambda: None)
    with pytest.raises(SystemExit) as end:
        command_line.main()
    return int(end.value.code or 0), capsys.readouterr().out


def test_what_only_the_images_or_aws_need_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = ended(monkeypatch, capsys)
    assert code == 0
    assert "ok       .venv-train" in out
    assert "not here Docker: docker is not on this machine" in out
    assert "remedy: install Docker Engine with buildx (docs/images.md)" in out
    assert "not here AWS credentials: there are no AWS credentials" in out
    assert "missing " not in out


def test_what_every_run_needs_is_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bootstrap, "is_set_up", lambda name: name == "harness")
    code, out = ended(monkeypatch, capsys, "--json")
    assert code == 4
    missing = {row["name"]: row["remedy"] for row in json.loads(out) if not row["ok"] and row["needed_for"] == "runs"}
    assert missing == {".venv-train": "run: make setup", ".venv-serve": "run: make setup"}


def test_a_java_home_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/no/java")
    assert found()["Java"].missing
    assert "JAVA_HOME" in found()["Java"].remedy


def test_credentials_are_found_and_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert found()["AWS credentials"].found == "from env; not tried"
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert "work" in found()["AWS credentials"].found  # there is no such section


def test_a_damaged_profile_is_told(tmp_path: Path) -> None:
    assert "harness init" in found()["AWS profile"].remedy
    (tmp_path / ".config" / "neuron-harness").mkdir(parents=True)
    (tmp_path / ".config" / "neuron-harness" / "profile.toml").write_text("account = 1\n")
    assert "account = 1 is not twelve digits" in found()["AWS profile"].found


@pytest.mark.parametrize(("driver", "ok"), [("2.18.12.0", True), ("2.29.1.0", False), ("", False)])
def test_a_neuron_host(tmp_path: Path, driver: str, ok: bool) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "neuron0").touch()
    if driver:
        (tmp_path / "sys" / "module" / "neuron").mkdir(parents=True)
        (tmp_path / "sys" / "module" / "neuron" / "version").write_text(driver)
    check = found(tmp_path)["Neuron"]
    assert check.ok is ok
    assert (check.found == "driver 2.18.12.0, 2 cores") is ok
