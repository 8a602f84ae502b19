"""A local SageMaker whose endpoints run tests/proxy/server.py, and `harness proxy` before one of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.local import control
from harness.local.control import Server
from tests.emulator.conftest import client
from tests.emulator.requests import Requests

ROOT = Path(__file__).parents[2]
LAUNCHER = f"""#!{sys.executable}
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
runpy.run_module("tests.proxy.server", run_name="__main__")
"""


@dataclass(frozen=True)
class Proxied:
    """An endpoint, and the address and token under which `harness proxy` offers it."""

    server: Server
    name: str
    base_url: str
    token: str

    @property
    def environment(self) -> dict[str, str]:
        """What the proxy printed, for clients."""
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": self.token}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands run: its .local is the local SageMaker's state."""
    made = tmp_path_factory.mktemp("proxy")
    launcher = made / "djl-serving"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    return made


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Server]:
    before = dict(os.environ)
    os.environ["DJL_SERVING"] = str(folder / "djl-serving")
    try:
        made = control.up(folder / ".local", None, "us-west-2", "process")[0]
    finally:
        os.environ.clear()
        os.environ.update(before)
    yield made
    control.down(folder / ".local")


@pytest.fixture(scope="session")
def proxied(server: Server, folder: Path) -> Iterator[Proxied]:
    requests = Requests(server, client)
    described = requests.deploy("words", PAUSE="0.02")
    assert described["EndpointStatus"] == "InService", described
    process = subprocess.Popen(
        [ROOT / ".venv" / "bin" / "harness", "proxy", "words"], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        url, key = (process.stdout.readline() for _ in range(2))
        base_url = re.fullmatch(r"export OPENAI_BASE_URL=(http://127\.0\.0\.1:\d+/v1)\n", url)
        token = re.fullmatch(r"export OPENAI_API_KEY=(\S{32})\n", key)
        assert base_url and token, (url, key)
        yield Proxied(server, "words", base_url[1], token[1])
    finally:
        process.terminate()
        code = process.wait(timeout=30)
        process.stdout.close()
        requests.delete("words")
        requests.close()
    assert code == 143, "it ends in order"
