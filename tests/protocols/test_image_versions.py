"""The image's pydantic is years older than this environment's: every hostile request has to end the same there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.protocols.hostile import REQUESTS
from tests.protocols.outcomes import outcomes

ROOT = Path(__file__).parents[2]


@pytest.mark.server
def test_the_images_pydantic_refuses_and_takes_the_same() -> None:
    python = ROOT / ".venv-serve" / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "tests.protocols.outcomes"], cwd=ROOT, capture_output=True, check=True, timeout=120
    )
    theirs = json.loads(done.stdout)
    assert theirs["pydantic"] == "2.6.1"
    assert len(theirs["outcomes"]) == len(REQUESTS)
    assert theirs["outcomes"] == json.loads(json.dumps(outcomes()))
