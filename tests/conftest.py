"""Fences of every test: no network but loopback, records below the test's own directory, no user settings."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from harness.executors.process import STAND_IN_ENV

# No test is timed: a busy machine is not a failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent
# What stands in for the packages that are published for Neuron hosts only: executor process, role neuron.
os.environ.setdefault(STAND_IN_ENV, str(ROOT / "tests" / "neuron" / "shim"))


@pytest.fixture(autouse=True)
def _fence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARNESS_RUNS_DIR", str(tmp_path / "runs"))
    for name in ("NEURON_HARNESS_DEVICE", "SAGEMAKER_BASE_DIR", "SAGEMAKER_BIND_TO_PORT", "EXECUTOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command that ends with an error in this process ignores signals from there on; the next test must not."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(signum) for signum in signals]
    yield
    for signum, handler in zip(signals, before, strict=True):
        signal.signal(signum, handler)


@pytest.fixture
def root() -> Path:
    return ROOT
