"""harness/openapi.json against the endpoint it describes: schemathesis makes requests from it, right and wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness import proxy
from tests.proxy.conftest import ROOT
from tests.proxy.test_proxy import TOKEN, Runtime


@pytest.mark.aws
@pytest.mark.timeout(900)
def test_what_is_described_is_taken_and_nothing_else(tmp_path: Path) -> None:
    app = proxy.application(proxy.Endpoint(Runtime(), "words"), TOKEN)
    with proxy.serving(app) as port:
        done = subprocess.run(
            [
                ROOT / ".venv-aws" / "bin" / "schemathesis",
                "--config-file",
                Path(__file__).parent / "schemathesis.toml",
                "run",
                f"http://127.0.0.1:{port}/openapi.json",
                *("--header", f"Authorization: Bearer {TOKEN}"),
                *("--phases", "examples,coverage,fuzzing", "--checks", "all"),
                *("--max-examples", "60", "--seed", "1", "--continue-on-failure", "--no-color"),
            ],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            check=False,
            timeout=800,
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Selected: 4/4" in done.stdout
    assert "Tested: 4" in done.stdout
