"""Applications' clients, unmodified, in an environment of their own, through `harness proxy`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.conftest import ROOT, Proxied

pytestmark = [pytest.mark.aws, pytest.mark.timeout(300)]
CLIENTS = Path(__file__).parent / "clients"


def run(name: str, proxied: Proxied, folder: Path) -> dict[str, Any]:
    # No proxy of the network's between here and loopback; no home where a client could find settings.
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "NO_PROXY": "*", **proxied.environment}
    env |= {"HF_HUB_OFFLINE": "0", "LANGSMITH_TRACING": "false", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [ROOT / ".venv-aws" / "bin" / "python", CLIENTS / f"{name}_client.py"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_openai(proxied: Proxied, tmp_path: Path) -> None:
    found = run("openai", proxied, tmp_path)
    assert found["models"] == ["words"]
    assert found["chat"] == " three two one user:"
    assert found["chat_finish"] == "length"
    assert found["chat_usage"] == [7, 4, 11]
    assert found["chat_logprobs"][0] == [" three", -0.5, 2]
    assert found["stream"] == [" three two one user: brief be system:"] * 2
    assert found["stream_usage"] == 14
    assert found["stream_roles"] == ["assistant"] * 2
    assert found["helper"] == found["stream"][0]
    assert found["completions"] == ["a b b a", "a b b a", "c d d c", "c d d c"]
    assert found["completions_tokens"] == ["a", " b", " b", " a"]
    assert found["completions_stream"] == " t3 t2 t1"
    assert found["extra"] == 2
    assert found["tools"][:2] == [400, "tools"]
    assert found["format"][:2] == [400, "response_format"]
    assert found["range"][:2] == [400, "temperature"]
    assert found["beyond"][:2] == [422, "n"]
    assert "the engine broke" in found["broken"]
    assert found["wrong_token"] == 401
    assert found["many"] == [f" q p{i}" for i in range(16)]


def test_huggingface_hub(proxied: Proxied, tmp_path: Path) -> None:
    found = run("hub", proxied, tmp_path)
    assert found["chat"] == " three two one"
    assert found["stream"] == " three two one user:"
    assert found["refused"] == 400
    assert found["text"] == " three two"
    assert found["details"] == [" three two one", "length", 3]
    assert found["logprob"] == -0.5
    assert found["prefill"] == ["one", " two", " three"]
    assert found["tgi_stream"] == [" three", " two", " one", ""]
    assert found["tgi_stream_details"][-1] == ["", -1, " three two one"]


def test_langchain(proxied: Proxied, tmp_path: Path) -> None:
    found = run("langchain", proxied, tmp_path)
    assert found["chat"] == " three two one user: brief be system:"
    assert found["chain"] == " now it say user:"
    assert found["batch"] == [" now a say user:", " now b say user:"]
    assert found["stream"] == " three two one user:"
    assert found["usage"] == 4
    assert found["text"] == " three two one"
    assert "constrained answers are not supported" in found["format"]
