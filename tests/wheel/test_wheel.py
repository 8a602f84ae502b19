"""The wheel in an empty environment and an empty directory, outside any checkout: what a user has after pip install.

Prints the session; `-s` shows it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1200)]
# What a user's shell has that matters here: the way to the package index, and where torch comes from.
PASSED_ON = (
    "PIP_INDEX_URL",
    "PIP_CERT",
    "MAVEN_MIRROR_URL",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "TORCH_INDEX",
    "WHEELS",
)

TINY = """
import json
from pathlib import Path
from harness.assets import tiny
text = '''name = "tiny"
[model]
id = "./model"
[data]
train = "train.jsonl"
validation = "validation.jsonl"
test = "test.jsonl"
labels = { red = " hot", blue = " icy" }
[train]
block_size = 32
per_device_train_batch_size = 4
max_steps = 20
learning_rate = 2e-3
logging_steps = 5
[serve]
n_positions = 128
'''
tiny.write(Path("."), text)
Path("test.jsonl").write_text(Path("validation.jsonl").read_text())
"""


class Session:
    """Commands in one directory, with an environment of their own."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder, self.python = folder / "work", folder / "venv" / "bin" / "python"
        self.folder.mkdir()
        proxies = {k: v for k, v in os.environ.items() if k.upper() in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")}
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "NEURON_HARNESS_HOME": str(folder / "harness"),
            # Downloads are shared with the checkout, and hard links need one file system; nothing else is.
            "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(root / ".cache" / "uv")),
            **{k: os.environ[k] for k in PASSED_ON if k in os.environ},
            **proxies,
        }

    def __call__(self, *words: str | Path) -> str:
        shown = " ".join(str(w) if len(str(w)) < 80 else "..." for w in words)
        print(f"\n$ {shown.replace(str(self.python.parent) + '/', '')}")
        how = {"cwd": self.folder, "env": self.environment, "capture_output": True, "text": True}
        done = subprocess.run([str(w) for w in words], check=False, **how)
        print(done.stdout[-3000:] + done.stderr[-3000:])
        assert done.returncode == 0, f"{shown}: {done.stderr[-2000:]}"
        return done.stdout

    def harness(self, *words: str) -> str:
        return self(self.python.parent / "harness", *words)


@pytest.fixture(scope="module")
def session(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("wheel")
    made = Session(root, folder)
    uv = [sys.executable, "-m", "uv"]
    env = {**os.environ, "UV_CACHE_DIR": made.environment["UV_CACHE_DIR"]}
    subprocess.run([*uv, "build", "-q", "--wheel", "--out-dir", folder / "dist", root], check=True, env=env)
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, folder / "venv"], check=True, env=env)
    (wheel,) = (folder / "dist").glob("*.whl")
    made(*uv, "pip", "install", "-q", "--python", made.python, wheel)
    yield made
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parent.parent.parent


def test_help_plan_and_doctor_work_in_an_empty_directory(session: Session) -> None:
    assert "Fine-tune LLMs" in session.harness("--help")
    assert "CreateTrainingJob" in session.harness("plan", "tinyllama-imdb")
    checks = {check["name"]: check for check in json.loads(session.harness("doctor", "--json"))}
    assert checks["machine"]["ok"]


def test_a_tiny_run_ends_with_its_measurement_and_leaves_nothing_running(session: Session) -> None:
    session(session.python, "-c", TINY)
    result = json.loads(session.harness("run", "verify.toml", "--json"))
    assert result["score"]["tuned"] > result["score"]["trivial"]
    (run,) = json.loads(session.harness("ps", "--json"))
    assert (run["training"], run["endpoints"]) == ("Completed", [])
    assert not (session.folder / ".local" / "server.json").exists()


def test_the_local_sagemaker_and_the_bake_file_work(session: Session) -> None:
    address = session.harness("local", "up").strip()
    try:
        assert address.startswith("http://127.0.0.1:")
        assert f"AWS_ENDPOINT_URL={address}" in session.harness("local", "env")
    finally:
        session.harness("local", "down")
    if shutil.which("docker"):
        targets = json.loads(session.harness("build", "--stand-in", "--print"))["target"]
        assert targets["train-sdk2-20-cpu"]["dockerfile"] == "containers/train/Dockerfile"
