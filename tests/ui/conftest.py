"""`harness ui` as a process, and Debian's Chromium without a window.

These tests have an environment of their own, and `make test-ui` fails where they are not collected or a browser is
missing. Elsewhere their files cannot even be imported.
"""

from __future__ import annotations

import importlib.util
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chain.conftest import ROOT, in_train_environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser

collect_ignore = [] if importlib.util.find_spec("playwright") else ["test_page.py"]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    assert Path(CHROMIUM).is_file(), "no chromium: apt install chromium, or name one in CHROMIUM"
    with sync_playwright() as playwright:
        # no-sandbox: CI is root in a container, where Chromium has no sandbox
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    in_train_environment("-m", "tests.chain.make_tiny_model", str(folder))
    return folder


@contextmanager
def page_of(folder: Path) -> Iterator[str]:
    """The address with its token, while the server runs in `folder`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTEST_CURRENT_TEST", "EXECUTOR")}
    environment = {**kept, "PYTHONPATH": str(ROOT), "HARNESS_RUNS_DIR": str(folder / ".runs")}
    with subprocess.Popen(
        [sys.executable, "-m", "harness", "ui"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], 60)
            assert ready, "no address after 60 s"
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
